"""Small files in the published layouts of MovieLens and KuaiRand, for gin files that name those datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.data.formats.kuairand import SIGNALS

USERS, EVENTS, ITEMS = 40, 30, 60


def write_movielens(folder: Path) -> None:
    """``ml-1m/ratings.dat`` and ``users.dat``, ``ml-20m/ratings.csv``."""
    rng = np.random.default_rng(0)
    item, stars = rng.integers(1, ITEMS + 1, (USERS, EVENTS)), rng.integers(1, 6, (USERS, EVENTS))
    place = [(u, e) for u in range(USERS) for e in range(EVENTS)]
    (folder / "ml-1m").mkdir(parents=True)
    lines = [f"{u + 1}::{item[u, e]}::{stars[u, e]}::{978_300_000 + 60 * e}" for u, e in place]
    (folder / "ml-1m" / "ratings.dat").write_text("\n".join(lines) + "\n")
    users = [f"{u + 1}::{'MF'[u % 2]}::{(1, 18, 25)[u % 3]}::{u % 4}::{10_000 + u % 7}" for u in range(USERS)]
    (folder / "ml-1m" / "users.dat").write_text("\n".join(users) + "\n")
    (folder / "ml-20m").mkdir()
    rows = [f"{u + 1},{item[u, e]},{stars[u, e] - 0.5 * (e % 2)},{978_300_000 + 60 * e}" for u, e in place]
    (folder / "ml-20m" / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]) + "\n")


def write_kuairand(folder: Path, edition: str) -> None:
    """``kuairand-EDITION/KuaiRand-EDITION`` with two periods of logs and what is known of the users."""
    inside = folder / f"kuairand-{edition}" / f"KuaiRand-{edition.title() if edition == 'pure' else edition.upper()}"
    inside.mkdir(parents=True)
    rng = np.random.default_rng(1)
    header = ",".join(["user_id", "video_id", "date", "hourmin", "time_ms", *SIGNALS.values(), "play_time_ms", "tab"])
    parts = ("_part1", "_part2") if edition == "27k" else ("",)
    for period, name in enumerate(("4_08_to_4_21", "4_22_to_5_08")):
        for number, part in enumerate(parts):
            lines = [header]
            for user in range(number, USERS, len(parts)):
                for event in range(EVENTS // 2):
                    time = 1_650_000_000_000 + 1_000 * (event + period * EVENTS)
                    flags = ",".join(map(str, rng.integers(0, 2, len(SIGNALS))))
                    lines.append(f"{user},{rng.integers(ITEMS)},20220410,1200,{time},{flags},3000,1")
            (inside / f"log_standard_{name}_{edition}{part}.csv").write_text("\n".join(lines) + "\n")
    columns = ("user_active_degree", "follow_user_num_range", "fans_user_num_range")
    columns += ("friend_user_num_range", "register_days_range")
    rows = [f"{user},{','.join(f'level {user % 3}' for _ in columns)}" for user in range(USERS)]
    text = "\n".join([",".join(["user_id", *columns]), *rows]) + "\n"
    (inside / f"user_features_{edition}.csv").write_text(text)
