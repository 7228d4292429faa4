"""Measure what the validation of a spec costs on POST: `python benchmarks/provider.py [ROUNDS]`.

Two services share a database: one has the schema with 200 properties in tests/providers/wide.yaml, the
other has none. Clusters with all 200 properties are posted to both alternately, over one connection
each, so that other load on the machine affects both. The validation alone is timed in this process.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import requests

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from process import Serving  # noqa: E402
from provider_samples import WIDE  # noqa: E402

from hyperfleet.contract.faults import faults  # noqa: E402
from hyperfleet.contract.provider_document import read  # noqa: E402
from hyperfleet.database import embedded, migration  # noqa: E402

FILE = ROOT / "tests" / "providers" / "wide.yaml"
WARM_UP = 50


def post(session: requests.Session, url: str, name: str) -> float:
    start = time.perf_counter()
    answer = session.post(f"{url}/api/hyperfleet/v1/clusters", json={"name": name, "spec": WIDE})
    took = time.perf_counter() - start
    assert answer.status_code == 201, answer.text
    return took


def alone(rounds: int) -> float:
    """Returns how many seconds one validation of the spec takes, as the median."""
    validator = read(FILE).validators["Cluster"]
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        assert not list(faults(validator, WIDE, ["spec"]))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder, embedded.running(Path(folder)) as conninfo:
        migration.apply(conninfo)
        env = {"HYPERFLEET_DATABASE_URL": conninfo}
        arguments = ("--no-auth", "--log-level=warning")
        with (
            Serving(*arguments, env=env) as without,
            Serving(*arguments, env={**env, "OPENAPI_SCHEMA_PATH": str(FILE)}) as with_,
            requests.Session() as first,
            requests.Session() as second,
        ):
            times: dict[str, list[float]] = {"without": [], "with": []}
            for number in range(rounds + WARM_UP):
                times["without"].append(post(first, without.url, f"o{number}"))
                times["with"].append(post(second, with_.url, f"w{number}"))
        medians = {name: statistics.median(taken[WARM_UP:]) for name, taken in times.items()}
    validation = alone(rounds)
    print(f"{rounds} POSTs each of a cluster with 200 properties, medians:")
    for name, median in medians.items():
        print(f"  {name:8} a schema  {median * 1000:7.3f} ms")
    print(f"  validation alone  {validation * 1000:7.3f} ms")
    print(f"  share of the request's time  {validation / medians['with']:.1%} (goal: under 10%)")


if __name__ == "__main__":
    main()
