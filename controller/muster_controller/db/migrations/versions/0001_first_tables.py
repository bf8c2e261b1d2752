"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "baseline",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("release", sa.LargeBinary(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("selector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_baseline")),
    )
    op.create_table(
        "desired",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("counter", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("models", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_desired")),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("twin", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
    )
    op.create_table(
        "event",
        sa.Column("ordinal", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("taken_at", sa.Float(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_event")),
        sa.UniqueConstraint("id", name=op.f("uq_event_id")),
    )
    op.create_index(op.f("ix_event_device_ordinal"), "event", ["device", "ordinal"], unique=False)
    op.create_index(op.f("ix_event_rollout_ordinal"), "event", ["rollout", "ordinal"], unique=False)
    op.create_index(op.f("ix_event_taken_at"), "event", ["taken_at"], unique=False)
    op.create_table(
        "note",
        sa.Column("ordinal", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_note")),
    )
    op.create_index(op.f("ix_note_subject_ordinal"), "note", ["subject", "ordinal"], unique=False)
    op.create_table(
        "rollout",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("release", sa.LargeBinary(), nullable=False),
        sa.Column("previous", sa.LargeBinary(), nullable=True),
        sa.Column("policy", sa.LargeBinary(), nullable=False),
        sa.Column("waves", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("wave_began_at", sa.Float(), nullable=True),
        sa.Column("wave_passed_at", sa.Float(), nullable=True),
        sa.Column("aborting_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("confirmed_wave", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
    )
    op.create_index(op.f("ix_rollout_created_at"), "rollout", ["created_at"], unique=False)
    op.create_table(
        "rollout_control",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("device_class", sa.String(), nullable=False),
        sa.Column("deadline_at", sa.Float(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_control_rollout_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "wave", "device", name=op.f("pk_rollout_control")),
    )
    op.create_table(
        "rollout_member",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("device_class", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("assigned_at", sa.Float(), nullable=True),
        sa.Column("deadline_at", sa.Float(), nullable=True),
        sa.Column("step", sa.String(), nullable=True),
        sa.Column("bytes_fetched", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("previous", sa.LargeBinary(), nullable=True),
        sa.Column("returned", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_member_rollout_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "device", name=op.f("pk_rollout_member")),
    )
    op.create_table(
        "rollout_verdict",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("e", sa.Float(), nullable=False),
        sa.Column("e_controls", sa.Float(), nullable=False),
        sa.Column("e_objective", sa.Float(), nullable=False),
        sa.Column("e_classes", sa.LargeBinary(), nullable=False),
        sa.Column("strata", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollout.id"], name=op.f("fk_rollout_verdict_rollout_rollout"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "ordinal", name=op.f("pk_rollout_verdict")),
    )
