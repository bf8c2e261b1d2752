"""Help: runbooks, words, keys, and where the command line and the API are told of."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.errors import NotFound
from muster_controller.web import prose, runbooks
from muster_controller.web.frame import pages, render
from muster_controller.web.glossary import GLOSSARY

router = pages()


@router.get("/help")
def help_page(request: Request) -> HTMLResponse:
    found = {name: prose.title(runbooks.read(name) or "", name) for name in runbooks.names()}
    return render(
        request,
        "help.html",
        alerts={name: title for name, title in found.items() if name.startswith("alert-")},
        others={name: title for name, title in found.items() if not name.startswith("alert-")},
        glossary=GLOSSARY,
    )


@router.get("/runbooks/{name}")
def runbook_page(request: Request, name: str) -> HTMLResponse:
    text = runbooks.read(name)
    if text is None:
        raise NotFound("runbook", name, f"there are {', '.join(runbooks.names())}")
    return render(
        request,
        "runbook.html",
        name=name,
        title=prose.title(text, name),
        blocks=prose.blocks(text),
        others=runbooks.names(),
    )
