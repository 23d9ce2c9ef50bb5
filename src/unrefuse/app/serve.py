"""The server of the page: on this machine alone, and behind a door."""

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from unrefuse.app.session import Session
from unrefuse.errors import UnrefuseError, first_line

if TYPE_CHECKING:
    from fastapi import FastAPI

INSTALL = "the page needs gradio: pip install 'unrefuse[app]'"


def site(session: Session) -> "FastAPI":
    """The page of a session, and the reports of past runs. Raises UnrefuseError where gradio is not
    installed.

    Mounted, not launched: what would share a page by the network is never started.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported, too
    try:
        import gradio
        from fastapi import FastAPI, HTTPException
        from fastapi.responses import FileResponse
    except ImportError as error:
        raise UnrefuseError(f"{INSTALL} ({first_line(error)})") from None
    from unrefuse.app.door import ADDRESS, REPORT_POLICY
    from unrefuse.app.page import THEME, build
    from unrefuse.app.parts import STYLE
    from unrefuse.app.runs import past_runs

    app = FastAPI(openapi_url=None)

    @app.get("/report/{key}")
    def report(key: str) -> FileResponse:
        for run in past_runs(session.folder):
            if run.key == key and run.report:
                policy = {"content-security-policy": REPORT_POLICY}
                return FileResponse(run.report, media_type="text/html", headers=policy)
        raise HTTPException(404)

    mounted: FastAPI = gradio.mount_gradio_app(
        app,
        build(session),
        "/",
        server_name=ADDRESS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=THEME,
        css_paths=STYLE,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    return mounted


def serve(session: Session, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves the page until Ctrl-C; `on_ready` is given its link. Port 0 is any free one.

    Raises UnrefuseError where gradio is not installed, or the port is taken.
    """
    page = site(session)
    import uvicorn

    from unrefuse.app.door import ADDRESS, Door

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((ADDRESS, port))
            listening.listen()  # so that the link works from the moment it is shown
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise UnrefuseError(f"cannot listen on port {port}: {reason}") from None
        door = Door(page, listening.getsockname()[1])
        on_ready(door.link())
        config = uvicorn.Config(
            door, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        # A page that is still open at Ctrl-C is cut off. That is no error.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                server.run(sockets=[listening])
        finally:
            session.close()
