from collections.abc import Iterator
from contextlib import closing

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etameter.archive.split import halves
from etameter.errors import ArchiveError

pytestmark = pytest.mark.unit

Row = tuple[str | None, str, int, float | None]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "it's", None]),
        st.sampled_from(["measured", "simulated"]),
        st.integers(-5, 5),
        st.one_of(st.none(), st.integers(-8, 8).map(lambda n: n / 4)),
    ),
    max_size=12,
)
QUESTIONS = (
    "SELECT count(*) FROM requests",
    "SELECT model, source, sum(j) / 3.6e6 AS kwh FROM requests GROUP BY ALL ORDER BY ALL",
    "SELECT sum(n), avg(j), min(j), max(n), count(j) FROM requests WHERE n > 0",
    "SELECT model AS m, avg(n) AS mean FROM requests GROUP BY m HAVING count(*) > 1 ORDER BY mean DESC, m LIMIT 2",
    "SELECT n % 2 AS odd, sum(j) FILTER (WHERE source = 'measured') FROM requests GROUP BY 1 ORDER BY 1",
    "SELECT source, 100 * sum(j) / sum(n) FROM requests GROUP BY source ORDER BY source",
    "SELECT upper(model), coalesce(sum(j), 0) + count(*) FROM requests GROUP BY upper(model) ORDER BY 1",
    "SELECT model FROM requests GROUP BY model ORDER BY model",
    "SELECT DISTINCT source FROM requests ORDER BY source",
    "SELECT * FROM requests ORDER BY ALL LIMIT 3 OFFSET 2",
    "SELECT n * 2 AS twice, model FROM requests WHERE j IS NOT NULL ORDER BY twice DESC, 2 LIMIT 4",
    'SELECT CASE WHEN sum(n) > 0 THEN \'more\' ELSE \'less\' END AS "it ""is""" FROM requests',
)


def connected() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE requests (model TEXT, source TEXT, n BIGINT, j DOUBLE)")
    return connection


def filled(rows: list[Row]) -> duckdb.DuckDBPyConnection:
    connection = connected()
    if rows:
        connection.executemany("INSERT INTO requests VALUES (?, ?, ?, ?)", rows)
    return connection


def in_parts(rows: list[Row], parts: int, question: str) -> Iterator[object]:
    """Each part asked by itself, what they say put together: types and names, and rows."""
    with closing(connected()) as whole:
        split = halves(whole, question)
        assert split.table == "requests"
        for part in range(parts):
            with closing(filled(rows[part::parts])) as one:
                answer = one.sql(split.each).to_arrow_table()
            whole.register("one", answer)
            whole.execute(f"{'INSERT INTO answers' if part else 'CREATE TABLE answers AS'} FROM one")
        yield whole.execute(f"DESCRIBE {split.all}").fetchall()
        yield whole.execute(split.all).fetchall()


@settings(max_examples=40)
@given(ROWS, st.integers(1, 4), st.sampled_from(QUESTIONS))
def test_parts_say_together_what_the_whole_says(rows: list[Row], parts: int, question: str) -> None:
    with closing(filled(rows)) as connection:
        wanted = [connection.execute(f"DESCRIBE {question}").fetchall(), connection.execute(question).fetchall()]
    assert list(in_parts(rows, parts, question)) == wanted


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_can_be_asked_of_parts(question: str) -> None:
    rows: list[Row] = [("a", "measured", 1, 0.5), ("b", "simulated", 2, None), ("a", "measured", 3, 0.25)]
    with closing(filled(rows)) as connection:
        wanted = connection.execute(question).fetchall()
    assert list(in_parts(rows, 2, question))[1] == wanted


@pytest.mark.parametrize(
    ("question", "what"),
    [
        ("SELECT count(DISTINCT model) FROM requests", "count of distinct"),
        ("SELECT median(n) FROM requests", "has median"),
        ("SELECT string_agg(model, ',' ORDER BY n) FROM requests", "string_agg"),
        ("SELECT sum(a.n) FROM requests AS a JOIN requests AS b USING (model)", "more than one table"),
        ("SELECT sum(n) FROM (SELECT n FROM requests)", "more than one table"),
        ("WITH x AS (SELECT 1 AS n) SELECT sum(n) FROM x", "more than one table"),
        ("SELECT count(*) FROM requests WHERE n > (SELECT avg(n) FROM requests)", "a subquery"),
        ("SELECT n, row_number() OVER () FROM requests", "a window"),
        ("SELECT model FROM requests ORDER BY n", "an ORDER BY of what it doesn't list"),
        ("SELECT model, sum(n) FROM requests GROUP BY ROLLUP (model)", "several groupings"),
        ("SELECT model FROM requests LIMIT 10%", "LIMIT that is no number"),
        ("SELECT DISTINCT ON (model) model, n FROM requests", "DISTINCT ON"),
        ("SELECT 1", "more than one table"),
        ("SELECT 1 UNION ALL SELECT 2", "more than one table"),
    ],
)
def test_what_cannot_be_asked_of_parts_is_refused(question: str, what: str) -> None:
    with closing(connected()) as connection, pytest.raises(ArchiveError, match=f"{what}.*leave out --engine ray"):
        halves(connection, question)
