"""The pages, a file each: routes that read and render. Orders go to the API; how a page looks is in `templates/`."""

from muster_controller.web.pages import (
    accounts,
    alerts,
    audit,
    devices,
    help,
    metrics,
    models,
    overview,
    rollouts,
    settings,
)

ROUTERS = (
    overview.router,
    devices.router,
    models.router,
    metrics.router,
    rollouts.router,
    alerts.router,
    audit.router,
    settings.router,
    help.router,
    accounts.outside,
    accounts.router,
)
