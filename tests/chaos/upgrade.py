"""R13: three boxes under load are upgraded one after the other from the first release for several, led back to it, and
upgraded again, with a step of the release that follows this one."""

import asyncio
import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server.jobs.postgres.migrations import STEPS, Step, migrate
from tests.chaos.fleet import LEASE_S, WITNESS, Box, audit, ended
from tests.chaos.harness import Clients, shares
from tests.chaos.queue_kills import clients_work
from tests.nodes.fleet import of_release
from tests.nodes.releases import first_of_several_boxes, worktree
from tests.support.haproxy import BOXES, balancing
from tests.support.postgres import cluster
from tests.support.server_process import clean_env

WORK_S = 0.5  # how long clients work before each restart
GOOD = ("ALTER TABLE jobs ADD COLUMN more integer NOT NULL DEFAULT 0", "ALTER TABLE outbox ADD COLUMN more text")
# The control: a step that serves no release before it.
BAD = ("ALTER TABLE jobs RENAME COLUMN not_before TO not_till",)


def upgraded(folder, jobs, *, step=GOOD, last=3, wait_s=None):
    """Restart each box three times under load; return what was seen.

    `step`: the statements of the last step; `last`: how many of the three rounds are made.
    """
    with contextlib.ExitStack() as stack:
        old = of_release(stack.enter_context(worktree(first_of_several_boxes())))
        database = stack.enter_context(cluster())
        (folder / "shared").mkdir()
        new = clean_env({"FOURSTEP_DATABASE": database.url(), "FOURSTEP_FILES": f"file://{folder / 'shared'}"})
        command = [str(Path(sys.executable).with_name("fourstep")), "serve", "--model", "instant:20"]
        command += ["--lease", str(LEASE_S), "--lameduck", "1"]
        boxes = [Box(folder / f"box{number}", new | old, command) for number in range(1, BOXES + 1)]
        for box in boxes:
            stack.callback(box.kill)
        with ThreadPoolExecutor(BOXES) as pool:
            list(pool.map(Box.start, boxes))
        asyncio.run(database.execute(*WITNESS))
        balancer = stack.enter_context(balancing(folder / "balancer", [f"127.0.0.1:{box.port}" for box in boxes]))
        clients = Clients(balancer.http_port, count=6)
        stack.callback(clients.close)
        made = [_steps_made(database)]
        rounds = [(new, ()), (new | old, ()), (new, step)][-last:]
        each = iter(shares(jobs, 1 + len(rounds) * BOXES))
        clients.allow(next(each))
        clients_work(clients, WORK_S)
        for env, statements in rounds:
            if statements:
                asyncio.run(migrate(database.url(), [*STEPS, Step(statements, serves=len(STEPS))]))
            for box in boxes:
                clients.allow(next(each))
                clients_work(clients, WORK_S)
                box.stop()
                box.env = env
                box.start()
            made.append(_steps_made(database))
        ended(clients, wait_s or 60 + jobs / 5)
        unserved = clients.left()
        clients.close()
        seen = audit(database, balancer.http_port, clients)
        tracebacks = sum(box.log().count("Traceback") for box in boxes)
    return {
        "restarts": len(rounds) * BOXES,
        "steps": max(made) - min(made),
        "unserved": unserved,
        **seen,
        "tracebacks": tracebacks,
    }


def _steps_made(database):
    """Return how many steps the schema has had."""
    ((made,),) = asyncio.run(database.fetch(database.url(), "SELECT made FROM fourstep_schema"))
    return made
