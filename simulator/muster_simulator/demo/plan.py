"""What the demo runs, and every number of it with its reason. Nothing here does anything."""

import platform
from dataclasses import dataclass

from muster_controller.core.policy import Policy, Weights
from muster_shared.bundle import Runtime
from muster_shared.ids import DeviceId, FleetId, ModelName
from muster_shared.messages import Hardware

FLEET = FleetId("harbour")
SEED = 78  # Of the order of devices: with fifty simulated ones, each 3.0.0 meets two real agents in its first wave.
DIGITS = ModelName("digits")
MAGIKA = ModelName("magika")
MODELS = (DIGITS, MAGIKA)
DIGITS_VERSIONS = ("1.0.0", "2.0.0", "2.1.0", "3.0.0")
MAGIKA_VERSIONS = ("1.0.0", "2.0.0", "3.0.0")


@dataclass(frozen=True)
class AgentPlan:
    """One real agent. Its declared hardware is also that of a class of simulated devices, so that each has controls."""

    device: DeviceId
    device_class: str
    runtime: Runtime
    cpu_count: int
    memory_mb: int

    @property
    def hardware(self) -> Hardware:
        return Hardware(
            device_class=self.device_class,
            arch=platform.machine(),
            accelerators=("cpu",),
            cpu_count=self.cpu_count,
            memory_mb=self.memory_mb,
            runtimes=(self.runtime,),
        )


AGENTS = (
    AgentPlan(DeviceId("gateway-1"), "gateway-openvino-4t", "openvino", 4, 4096),
    AgentPlan(DeviceId("camera-1"), "camera-ort-1t", "onnxruntime", 1, 512),
    AgentPlan(DeviceId("camera-2"), "camera-ort-1t", "onnxruntime", 1, 512),
    AgentPlan(DeviceId("kiosk-1"), "kiosk-ort-2t", "onnxruntime", 2, 2048),
    AgentPlan(DeviceId("machine-1"), "machine-ort-2t", "onnxruntime", 2, 1024),
)
CUT = DeviceId("kiosk-1")
"""Its line to the broker goes through the relay."""
KILLED = DeviceId("machine-1")
REVOKED = DeviceId("camera-2")
"""It is lost for the fleet at the end; its applications do not notice."""
VISITOR = DeviceId("visitor-1")
"""A device that is enrolled as it should be, and tries what it should not; `STRANGER` is not."""
STRANGER = DeviceId("stranger")
VICTIM = DeviceId("gateway-1")
"""Whose post the visitor tries to read and to forge."""

CLASSES = tuple({agent.device_class: agent.hardware for agent in AGENTS}.values())

AGENT_THREADS = 1  # Five agents share two processors with everything else.
TWIN_EVERY_S = 5.0  # A demo is watched; the default of a minute is for the field.

# Traffic. A probation window must hold enough labelled answers to tell a release from its claim (`core.health`): of 60
# answers, digits 3.0.0 gets about 8 wrong where its claim allows 3, and magika 3.0.0 about 8 where its claim allows 6.
# Simulated devices cost nothing, so they ask more; a real magika inference takes 8 ms of a processor.
REAL_REQUESTS_PER_S = {DIGITS: 20.0, MAGIKA: 12.0}
SIMULATED_REQUESTS_PER_S = {DIGITS: 25.0, MAGIKA: 25.0}
REQUESTS_MIN = 60

FIRST_RELEASE = Policy(
    waves=("100%",),  # There is nothing yet to compare with, and nothing to lose.
    # A window of 100 answers: 25 of them look worse than the claim on one device in a hundred, and 55 devices look.
    window_s=4.0,
    window_max_s=5.0,
    requests_min=0,  # Local applications begin when there is something to ask.
    deadline_s=60.0,  # Five agents load their first engines at once.
    success_required=0.9,
)
STAGED = Policy(
    waves=(5, "25%"),  # One device of each class and one more; a quarter; the rest.
    alpha=0.05,
    # Every 2.0.0 is a bigger model than 1.0.0, and all devices share two processors: latency would only speak of that.
    weights=Weights(failures=1.0, latency=0.0, agreement=0.0),
    failure_objective=0.02,
    # A device that runs as claimed calls itself bad in at most 1 of 100 windows: one of five may, and the wave goes on.
    success_required=0.75,
    controls_per_device=3,  # Enough to see harm in a wave of five; each watched device sends one more report.
    window_s=4.0,
    window_max_s=14.0,  # A real agent reaches 60 magika answers in 5 s, in 10 s on a machine that is half as fast.
    requests_min=REQUESTS_MIN,
    # Fetch and proof take 2 s, or 5 s while half the fleet does the same, a restart 4 s; and all of it thrice as long
    # on a machine that has as much else to do. Nobody waits for it but for a device that is gone.
    deadline_s=45.0,
)

MIXER = "mixer-1"
METRICS_SPEED = 360.0  # An hour of the metrics passes in 10 s: the story of two minutes is half a day.
MIXED_HOURS = 3
MIXED_S = 60.0  # An hour, the time until it is closed, and a controller that has other things to do.

TOKEN_S = 3600.0  # Of the token that all devices enrol with.
CUT_OFF_S = 10.0  # For what takes half a second: the broker is told, and cuts; a busy machine takes longer.
RESTART_S = 1.0  # As the agent's systemd unit says.
READY_S = 60.0  # Controller, broker, agents: a machine half as fast as the slowest that was measured.
BUILD_S = 120.0  # 20 s of training and proving on one processor; a fetch of two wheels the first time.
ROLLOUT_S = 135.0  # Three waves, each up to its deadline.
OFFLINE_S = 25.0  # The broker holds a will back for 15 s.
CONVERGE_S = 90.0  # A link that was cut for long tries again within a minute.
SEEN_MIN = 40  # Answers of each agent and model before its accuracy is told: four seconds of traffic.
SEEN_S = 30.0
