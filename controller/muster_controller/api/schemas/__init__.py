"""What the API says and takes, as types: the OpenAPI document is generated from these.

Field names are those of the wire and the core. Times are Unix seconds. A listing is a page: `next` is the cursor of the
next one, null on the last.
"""

from muster_controller.api.schemas.changes import DeviceDiff, TimeDiff
from muster_controller.api.schemas.devices import (
    DeviceDetail,
    DevicePage,
    DeviceView,
    EventPage,
    EventView,
    NotePage,
    NoteView,
    ReleaseView,
    SlotView,
)
from muster_controller.api.schemas.fleet import ExpiryView, Health, Status, VersionView
from muster_controller.api.schemas.models import (
    BaselineView,
    BlobStored,
    FileView,
    ModelPage,
    ModelView,
    OfflineTrust,
    Publication,
    Published,
    TrustChanged,
    TrustPage,
    VariantView,
    VersionDetail,
)
from muster_controller.api.schemas.planning import (
    Plan,
    PolicyChecked,
    PolicyQuestion,
    RollbackOrder,
    RolloutOrder,
)
from muster_controller.api.schemas.rollouts import (
    EvidencePage,
    EvidencePointView,
    EvidenceView,
    MemberPage,
    MemberView,
    Ordering,
    RolloutDetail,
    RolloutPage,
    RolloutSummary,
    WaitingPage,
)

__all__ = [
    "BaselineView",
    "BlobStored",
    "DeviceDetail",
    "DeviceDiff",
    "DevicePage",
    "DeviceView",
    "EventPage",
    "EventView",
    "EvidencePage",
    "EvidencePointView",
    "EvidenceView",
    "ExpiryView",
    "FileView",
    "Health",
    "MemberPage",
    "MemberView",
    "ModelPage",
    "ModelView",
    "NotePage",
    "NoteView",
    "OfflineTrust",
    "Ordering",
    "Plan",
    "PolicyChecked",
    "PolicyQuestion",
    "Publication",
    "Published",
    "ReleaseView",
    "RollbackOrder",
    "RolloutDetail",
    "RolloutOrder",
    "RolloutPage",
    "RolloutSummary",
    "SlotView",
    "Status",
    "TimeDiff",
    "TrustChanged",
    "TrustPage",
    "VariantView",
    "VersionDetail",
    "VersionView",
    "WaitingPage",
]
