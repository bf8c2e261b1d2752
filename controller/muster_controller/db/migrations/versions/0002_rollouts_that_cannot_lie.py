"""The rollouts of policies with pace, approvals, trials and matched controls; history; the writer's row.

What a former controller wrote goes on as it was meant: selectors become text, its evidence that of failures alone, and
a rollout that rests waits for a person. A former control has no partner, so none of its latency is compared.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WIDE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LIFETIME_S = 30 * 86400.0  # Of every assignment until now.


def upgrade() -> None:
    _writer()
    _widen()
    _desired()
    _baselines()
    _rollouts()
    _members()
    _controls()
    _verdicts()
    _new_tables()


def _writer() -> None:
    writer = op.create_table(
        "writer",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("generation", WIDE, nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.Column("clock", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_writer")),
    )
    op.bulk_insert(writer, [{"id": 1, "generation": 0, "holder": "", "url": "", "until": 0.0, "clock": ""}])


def _widen() -> None:
    """PostgreSQL's integers have 32 bits where SQLite's have 64."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.alter_column("desired", "counter", type_=sa.BigInteger())
    op.alter_column("rollout_member", "bytes_fetched", type_=sa.BigInteger())
    for table in ("event", "note"):
        op.alter_column(table, "ordinal", type_=sa.BigInteger())
        op.execute(f"ALTER SEQUENCE {table}_ordinal_seq AS bigint")


def _desired() -> None:
    op.add_column("desired", sa.Column("issued_at", sa.Float(), nullable=False, server_default="0"))
    issued = op.create_table(
        "issued",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("counter", WIDE, autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("models", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("device", "counter", name=op.f("pk_issued")),
    )
    desired = _table("desired", "device", "counter", "expires_at", "issued_at", "models")
    history = []
    for row in _rows(desired):
        at = max(0.0, row.expires_at - LIFETIME_S)
        wanted = _json({name: _wanted(model, at) for name, model in json.loads(row.models).items()})
        change = sa.update(desired).where(desired.c.device == row.device)
        op.execute(change.values(issued_at=at, models=wanted))
        if row.counter:
            history.append({"device": row.device, "counter": row.counter, "at": at, "models": wanted})
    op.bulk_insert(issued, history)


def _wanted(model: dict[str, Any], at: float) -> dict[str, Any]:
    rollout = (model.get("watch") or {}).get("rollout", "")
    return {"assignment": model, "rollout": rollout, "at": at}


def _baselines() -> None:
    old = _rows(_table("baseline", "model", "release", "rollout", "selector"))
    rollouts = {row.id: row for row in _rows(_table("rollout", "id", "created_at", "ended_at"))}
    op.drop_table("baseline")
    new = op.create_table(
        "baseline",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("release", sa.LargeBinary(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model", "selector", name=op.f("pk_baseline")),
    )
    values = []
    for row in old:
        rollout = rollouts.get(row.rollout)
        values.append(
            {
                "model": row.model,
                "selector": _selector(json.loads(row.selector)),
                "release": row.release,
                "rollout": row.rollout,
                "at": 0.0 if rollout is None else rollout.ended_at or rollout.created_at,
            }
        )
    op.bulk_insert(new, values)


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels))


def _rollouts() -> None:
    # Columns are only added: to build the table anew would delete the devices of its rollouts with it.
    for column in (
        sa.Column("at_once", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("pause", sa.String(), nullable=True),
        sa.Column("paced_at", sa.Float(), nullable=False, server_default="0"),
        sa.Column("credit", sa.Float(), nullable=False, server_default="0"),
        sa.Column("due_at", sa.Float(), nullable=False, server_default="0"),
        sa.Column("plotted_e", sa.Float(), nullable=False, server_default="1"),
        sa.Column("recalled", sa.Integer(), nullable=False, server_default="-1"),
        sa.Column("approvals", sa.LargeBinary(), nullable=False, server_default="[]"),
    ):
        op.add_column("rollout", column)
    rollout = _table("rollout", "id", "policy", "state", "pause", "approvals")
    for row in _rows(rollout):
        policy = json.loads(row.policy)
        policy["selector"] = _selector(policy.get("selector") or {})
        pause = "by_hand" if row.state == "paused" else None
        change = sa.update(rollout).where(rollout.c.id == row.id)
        op.execute(change.values(policy=_json(policy), pause=pause, approvals=b"[]"))


def _members() -> None:
    for column in (
        sa.Column("cause", sa.String(), nullable=False, server_default=""),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("retry_at", sa.Float(), nullable=True),
        sa.Column("deferred_until", sa.Float(), nullable=True),
        sa.Column("controls", sa.LargeBinary(), nullable=True),
        sa.Column("latency", sa.Float(), nullable=True),
        sa.Column("is_paired", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("disagreed", sa.Boolean(), nullable=True),
        sa.Column("second", sa.String(), nullable=True),
    ):
        op.add_column("rollout_member", column)
    op.execute("UPDATE rollout_member SET attempt = 1 WHERE assigned_at IS NOT NULL")


def _controls() -> None:
    columns = ("rollout", "wave", "device", "device_class", "deadline_at", "outcome", "reason")
    old = _rows(_table("rollout_control", *columns))
    policies = {row.id: json.loads(row.policy) for row in _rows(_table("rollout", "id", "policy"))}
    op.drop_table("rollout_control")
    new = op.create_table(
        "rollout_control",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("device_class", sa.String(), nullable=False),
        sa.Column("partner", sa.String(), nullable=False),
        sa.Column("assigned_at", sa.Float(), nullable=True),
        sa.Column("deadline_at", sa.Float(), nullable=True),
        sa.Column("deferred_until", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("latency", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_control_rollout_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "wave", "device", name=op.f("pk_rollout_control")),
    )
    values = []
    for row in old:
        deadline_s = policies[row.rollout].get("deadline_s", 3600.0)
        assigned_at = row.deadline_at - deadline_s  # That is how the deadline was set.
        values.append({**{name: getattr(row, name) for name in columns}, "partner": "", "assigned_at": assigned_at})
    op.bulk_insert(new, values)


def _verdicts() -> None:
    kept = ("rollout", "ordinal", "at", "wave", "kind", "reason", "e")
    old = _rows(_table("rollout_verdict", *kept, "e_controls", "e_objective", "e_classes", "strata"))
    op.drop_table("rollout_verdict")
    new = op.create_table(
        "rollout_verdict",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("e", sa.Float(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_verdict_rollout_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "ordinal", name=op.f("pk_rollout_verdict")),
    )
    values = []
    for row in old:
        evidence = {
            "e": row.e,
            "hold_e": row.e,
            "metrics": {"failures": {"e": row.e, "e_pooled": row.e, "e_classes": json.loads(row.e_classes)}},
            "e_controls": row.e_controls,
            "e_objective": row.e_objective,
            "strata": json.loads(row.strata),
        }
        values.append({**{name: getattr(row, name) for name in kept}, "evidence": _json(evidence)})
    op.bulk_insert(new, values)


def _new_tables() -> None:
    op.create_table(
        "rollout_stratum",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("device_class", sa.String(), nullable=False),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_stratum_rollout_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "wave", "device_class", name=op.f("pk_rollout_stratum")),
    )
    op.create_table(
        "rollout_point",
        sa.Column("ordinal", WIDE, autoincrement=True, nullable=False),
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("e", sa.Float(), nullable=False),
        sa.Column("metrics", sa.LargeBinary(), nullable=False),
        sa.Column("treated", sa.Integer(), nullable=False),
        sa.Column("reported", sa.Integer(), nullable=False),
        sa.Column("bad", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_point_rollout_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_rollout_point")),
    )
    op.create_index(op.f("ix_rollout_point_rollout_ordinal"), "rollout_point", ["rollout", "ordinal"], unique=False)


def _table(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *(sa.column(column) for column in columns))


def _rows(table: sa.TableClause) -> list[Any]:
    return list(op.get_bind().execute(sa.select(table)))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
