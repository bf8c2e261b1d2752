"""The pages, a file each: routes that read and render. Orders go to the API; how a page looks is in `templates/`."""

from muster_controller.web.pages import (
    accounts,
    alerts,
    audit,
    device_list,
    devices,
    help,
    keys,
    metrics,
    model_versions,
    models,
    overview,
    rollout_new,
    rollout_report,
    rollouts,
    settings,
    uploads,
)

ROUTERS = (
    overview.router,
    device_list.router,
    devices.router,
    uploads.router,
    models.router,
    model_versions.router,
    metrics.router,
    rollout_new.router,  # Before `rollouts`, where /rollouts/{rollout_id} would take its paths.
    rollout_report.router,
    rollouts.router,
    alerts.router,
    audit.router,
    keys.router,
    settings.router,
    help.router,
    accounts.outside,
    accounts.router,
)
