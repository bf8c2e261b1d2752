"""The page of a rollout's report: it prints well, and can be had as JSON and Markdown from the API."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.api.rollouts import report_of
from muster_controller.api.services import Given
from muster_controller.web.frame import pages, render
from muster_controller.web.rollout_present import report_plot

router = pages()


@router.get("/rollouts/{rollout_id}/report")
def report_page(request: Request, given: Given, rollout_id: str) -> HTMLResponse:
    found = report_of(given, rollout_id)
    return render(request, "rollout_report.html", report=found, plot=report_plot(found), now=given.clock())
