"""A decoder process without what only Unix has."""

from tests.audio.without_unix import take_away_unix

take_away_unix()

from loopjax.audio.worker import serve  # noqa: E402 - the names must be gone by then

if __name__ == "__main__":
    serve()
