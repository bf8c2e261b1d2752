"""Every kind of problem that the API answers with: its status, and what to do. Documents are made from this.

`problems` says which error is which kind; a test holds the two together, and docs/api.md has the table.
"""

from typing import Final

TYPE_PREFIX: Final = "urn:muster:problem:"

KINDS: Final[dict[str, tuple[int, str]]] = {
    "bad-request": (400, "It cannot be read at all, mostly a body that is no JSON."),
    "incomplete": (400, "The request ended before its body did. Send it again."),
    "unauthenticated": (401, "No token, or one that does not hold any more: `muster login`, `muster token create`."),
    "login-refused": (401, "Name or password are wrong."),
    "cross-site": (403, "A page of another origin, or a session outside its page. Programs send a token."),
    "forbidden": (403, "The role, or the selector, does not allow it; `detail` says which role does."),
    "not-found": (404, "There is no such thing, or you may not see it."),
    "method-not-allowed": (405, "The path is right, the method is not; the header `Allow` lists what is."),
    "blob-missing": (409, "The manifest names a file that was not uploaded: `PUT /blobs/{sha256}` first."),
    "conflict": (
        409,
        "It contradicts what is there or under way, maybe the same order with the same key: `detail` says what.",
    ),
    "enrolment-conflict": (
        409,
        "The token, device or mixer is in another state than the order supposes. Look at it again.",
    ),
    "not-initialised": (
        409,
        "The offline keys have not vouched for this controller: `muster init`, `muster trust push`.",
    ),
    "operator-exists": (409, "The name is taken."),
    "order-refused": (409, "The rollout is in a state in which this order makes no sense. Look at it again."),
    "version-conflict": (409, "The version is published with other contents. Versions never change: take another one."),
    "link-spent": (410, "The link was used, or is too old. An admin makes another one."),
    "stale": (412, "`If-Match` names an older state, or a thing that is not there. Read it again, then decide again."),
    "too-large": (413, "The body is longer than 16 MiB. Files go as blobs."),
    "content-type": (415, "Orders are `application/json`, blobs `application/octet-stream`."),
    "host-unknown": (421, "The name in `Host` is none of this controller's: `muster serve --name`."),
    "blob-mismatch": (422, "The bytes do not have the digest or length that was said. Upload them again."),
    "bundle-invalid": (422, "The bundle's manifest breaks its format."),
    "idempotency-key-invalid": (422, "A key has 16 to 255 visible ASCII characters."),
    "idempotency-key-reused": (422, "The key came with another order before. Take a new key for a new order."),
    "identity-refused": (422, "An identity, token or certificate that the CA does not take."),
    "metadata-refused": (422, "TUF metadata that does not verify, or is older than what is known."),
    "name-invalid": (422, "A name breaks the rules for names, or a message breaks its format."),
    "password-unfit": (422, "At least twelve characters."),
    "policy-invalid": (422, "`field` and, for text, `line` say where the policy is wrong."),
    "receiver-invalid": (422, "The receiver's address or login cannot be used."),
    "registry-refused": (422, "The registry does not take it: `detail` says why."),
    "request-invalid": (422, "`errors` lists each field that does not fit, and why."),
    "selector-invalid": (422, "The label selector cannot be read."),
    "threshold-not-met": (422, "Too few of the role's keys have signed."),
    "too-much": (422, "The question is over more hours, cells or devices than one answer holds. Narrow it."),
    "login-locked": (429, "Too many wrong passwords. Wait for `Retry-After` seconds; `muster user unlock` ends it."),
    "too-many-requests": (429, "Wait for `Retry-After` seconds."),
    "database-refused": (500, "The database refused what was written. Its log, and the controller's, say more."),
    "internal": (500, "A bug of the controller; its log says more under the `X-Request-ID` of the answer."),
    "key-missing": (500, "A key of the controller's own is not in its data folder."),
    "oidc-failed": (502, "The identity provider did not answer, or not as agreed."),
    "telling-failed": (502, "The receiver did not take the notice."),
    "database-unavailable": (503, "The database is away. Send it again later, orders with their `Idempotency-Key`."),
    "unavailable": (503, "Too much to do, or on its way down. Look whether it was done; send it again with its key."),
}
"""By the kind, in the order of their statuses: `type` of a problem is TYPE_PREFIX and the kind."""


def table() -> str:
    """Return all kinds as a table in Markdown."""
    lines = [f"| `{kind}` | {status} | {meaning} |" for kind, (status, meaning) in KINDS.items()]
    return "\n".join(["| Kind | Status | What it says, and what to do |", "|---|---|---|", *lines, ""])
