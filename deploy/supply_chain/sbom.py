"""`make sbom`: a CycloneDX 1.6 document for each of our wheels, of all that the lock lets it bring along.

    python deploy/supply_chain/sbom.py [OUT]     dist/muster-agent-0.1.0.cdx.json and so on

The same lock gives the same bytes: no date, and a serial number that follows from the content. Where the lock differs
by Python, it is what this Python gets. It finds no vulnerabilities; `audit.py` asks for those.
"""

import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from closure import OWN, Package, Part, close, parts_of, read_lock
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = Path(__file__).parents[2]


def document(part: Part, packages: Mapping[str, Package], wheel: Path | None) -> str:
    """Return the document of `part`.

    Args:
        packages: As `closure.close` says, `part` among them.
        wheel: Its file, when it was built: the document then says its hash.
    """
    components = {name: _component(package) for name, package in sorted(packages.items())}
    own = components.pop(part.name)
    own.type, own.scope = ComponentType.APPLICATION, None
    if wheel is not None:
        own.hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256(wheel.read_bytes()).hexdigest())]
    bom = Bom(components=components.values())
    bom.metadata.component = own
    bom.metadata.timestamp = None
    named = {**components, part.name: own}
    for name, package in sorted(packages.items()):
        bom.register_dependency(named[name], [named[each] for each in sorted(package.needs)])
    lines = [f"{package.name}=={package.version} {' '.join(package.sha256)}" for package in packages.values()]
    bom.serial_number = uuid5(NAMESPACE_URL, "\n".join([part.name, *sorted(lines)]))
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def check(text: str) -> None:
    """Raise ValueError unless `text` is CycloneDX 1.6 by its schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator  # It compiles grammars for seconds.

    if (problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise ValueError(f"this is not CycloneDX 1.6: {problem}")


def _component(package: Package) -> Component:
    purl = PackageURL("pypi", None, package.name, package.version)
    files = [HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.sha256]
    made = Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        scope=ComponentScope.OPTIONAL if package.is_optional else ComponentScope.REQUIRED,
    )
    if package.licence:
        made.licenses = [LicenseFactory().make_from_string(package.licence)]
    if files:
        # Any of these files may be what is installed; none of them is the component itself.
        reference = ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION, url=XsUri(purl.to_string()), hashes=files, comment="as locked"
        )
        made.external_references = [reference]
    return made


def main(out: Path) -> int:
    parts, pins = parts_of(ROOT), read_lock(ROOT / "requirements.lock")
    out.mkdir(parents=True, exist_ok=True)
    for part in parts.values():
        packages = close(part, parts, pins)
        wheel = next(iter(sorted(out.glob(f"{part.name.replace('-', '_')}-{part.version}-*.whl"))), None)
        path = out / f"{part.name}-{part.version}.cdx.json"
        text = document(part, packages, wheel)
        check(text)
        path.write_text(text, encoding="utf-8")
        others = [package for package in packages.values() if not package.name.startswith(OWN)]
        unsaid = sorted(package.name for package in others if not package.licence)
        optional = sum(package.is_optional for package in others)
        print(f"{path.name}: {len(others)} packages, {optional} of them for extras alone")
        if unsaid:
            print(f"  without a licence in their metadata: {', '.join(unsaid)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist"))
