"""The pages, a file each: routes that read and render. Orders go to the API; how a page looks is in `templates/`."""

from muster_controller.web.pages import accounts, devices, metrics, models, overview, rollouts

ROUTERS = (
    overview.router,
    devices.router,
    models.router,
    metrics.router,
    rollouts.router,
    accounts.outside,
    accounts.router,
)
