"""What stands in front of the application, from the street inwards.

    Access     request id, log line, figures
    Doors      without keys: this machine only
    Cors       preflights, and who may read answers
    Dispatch   host names and paths to canonical paths
    Permits    gives back what was taken for a call

It lies outside the framework's own error handling, so that a crash, too, is answered with an id and can be read by a
page.
"""

from starlette.types import ASGIApp

from server.access.auth import Auth
from server.access.limits import ReleaseReservations
from server.fal.hosts import CanonicalPath
from server.logs import AccessLog
from server.metrics import Metrics
from server.settings import Settings
from server.web.cors import Cors
from server.web.origin_guard import OriginGuard


def front(app: ASGIApp, settings: Settings, auth: Auth, metrics: Metrics) -> ASGIApp:
    """`app` with all of it in front."""
    mapped = CanonicalPath(ReleaseReservations(app), settings.public_url)
    return AccessLog(OriginGuard(Cors(mapped), auth, settings), metrics)
