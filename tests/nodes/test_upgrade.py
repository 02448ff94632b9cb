"""R13: the first release for several boxes beside this one, on one PostgreSQL, in both directions of an upgrade."""

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from server.jobs.postgres.migrations import STEPS, Step, migrate
from tests.jobs.forms import migrated
from tests.nodes.fleet import environment, fleet
from tests.nodes.releases import first_of_several_boxes, worktree
from tests.support.server_process import until

pytestmark = pytest.mark.slow

SCHEMA = """
SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns
WHERE table_schema = 'public'
UNION ALL SELECT tablename, indexname, indexdef, NULL, NULL FROM pg_indexes WHERE schemaname = 'public'
ORDER BY 1, 2
"""
KNOWN = 1  # steps that the first release knows
# Of a release that is still to come.
NEXT = Step(
    [
        "ALTER TABLE jobs ADD COLUMN more integer NOT NULL DEFAULT 0",
        "ALTER TABLE events ADD COLUMN more integer NOT NULL DEFAULT 0",
        "ALTER TABLE outbox ADD COLUMN more integer NOT NULL DEFAULT 0",
    ],
    serves=len(STEPS),
)


def said(boxes, word):
    """Return the servers in whose log a word is."""
    return [number for number in boxes.servers if word in (boxes.data_dir(number) / "log").read_text()]


@pytest.fixture(scope="module")
def old():
    with worktree(first_of_several_boxes()) as files:
        yield files


@pytest.fixture
def boxes(postgres, tmp_path):
    """No servers yet, on a database of their own."""
    name = asyncio.run(postgres.new_database())
    # Most of what was submitted waits while servers come and go.
    flags = ("--model", "instant+jpeg:100", "--max-batch", "2", "--lameduck", "0")
    with fleet(tmp_path, postgres.url(name), 0, *flags) as servers:
        yield servers
    asyncio.run(postgres.drop(name))


class Submitted:
    """Jobs of a queue, each with a seed of its own."""

    def __init__(self, boxes):
        self._boxes = boxes
        self._seeds = itertools.count()
        self._paths = {}

    def at(self, number, count):
        """Submit so many at one server."""
        for seed in itertools.islice(self._seeds, count):
            self._paths[seed] = self._boxes.submit(number, seed=seed)

    def done_by(self, *numbers):
        """Return whether each of these servers has ended at least one."""
        logs = [(self._boxes.data_dir(number) / "log").read_text() for number in numbers]
        return all(any(path.rpartition("/")[2] in log for path in self._paths.values()) for log in logs)

    def results(self, number):
        """Wait until all have ended; return each one's seed, and that of its result, as one server tells them."""
        for path in self._paths.values():
            self._boxes.completed(number, path)
        return {seed: self._boxes.ask(number, path).body["seed"] for seed, path in self._paths.items()}

    def pictures(self, number):
        """Return the beginnings of all result files, as one server has them."""
        urls = [self._boxes.ask(number, path).body["images"][0]["url"] for path in self._paths.values()]
        return {self._boxes.ask(number, "/" + url.split("/", 3)[3]).body[:2] for url in urls}


def stopped(boxes, jobs):
    """Submit more at either box, stop the first, and see that the second has all that was made."""
    jobs.at(1, 20)
    jobs.at(2, 10)
    ended = boxes.servers[1].stop()
    results = jobs.results(2)

    assert ended == 0
    assert results == {seed: seed for seed in range(60)}
    assert jobs.pictures(2) == {b"\xff\xd8"}
    assert said(boxes, "Traceback") == []


def made(postgres, boxes):
    """Return how many steps its schema has had."""
    ((count,),) = asyncio.run(postgres.fetch(boxes.url, "SELECT made FROM fourstep_schema"))
    return count


def schema(postgres, url):
    """Return columns and indexes of all tables."""
    return asyncio.run(postgres.fetch(url, SCHEMA))


def test_the_next_release_does_the_old_ones_jobs_and_stays(postgres, boxes, old):
    jobs = Submitted(boxes)
    boxes.start(1, release=old)
    jobs.at(1, 20)
    before = made(postgres, boxes)
    boxes.start(2)
    jobs.at(2, 10)
    until(lambda: jobs.done_by(1, 2))
    after = schema(postgres, boxes.url)
    asyncio.run(migrate(boxes.url, [*STEPS, NEXT]))
    stopped(boxes, jobs)

    assert before == KNOWN
    assert after == schema(postgres, postgres.url(asyncio.run(migrated(postgres))))


@pytest.mark.long
def test_the_old_release_does_the_next_ones_jobs_and_stays(postgres, boxes, old):
    jobs = Submitted(boxes)
    boxes.start(1)
    jobs.at(1, 20)
    boxes.start(2, release=old)
    jobs.at(2, 10)
    until(lambda: jobs.done_by(1, 2))
    stopped(boxes, jobs)

    assert made(postgres, boxes) == len(STEPS)


def test_a_release_that_is_too_old_says_so(boxes, old):
    asyncio.run(migrate(boxes.url, [*STEPS, NEXT, Step(["SELECT 1"], serves=KNOWN + 1)]))
    command = [str(Path(sys.executable).with_name("fourstep")), "nodes"]
    env = environment(boxes, old)
    refused = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert refused.returncode == 1
    assert refused.stderr == (
        f"fourstep: database: its schema is of version {len(STEPS) + 2}, which serves releases that know {KNOWN + 1};"
        f" this one knows {KNOWN}. Hint: upgrade fourstep\n"
    )
