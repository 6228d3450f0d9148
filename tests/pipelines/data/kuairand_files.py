"""KuaiRand's published files, small: the real headers, names and folders."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{place}" for place in range(18))
)
FOLDERS = {"pure": "KuaiRand-Pure", "1k": "KuaiRand-1K", "27k": "KuaiRand-27K"}


def event(user: int, video: int, time: int, signals: str = "00000000", play: int = 1000, rand: int = 0) -> str:
    """A line of a log; ``signals``: click, like, follow, comment, forward, hate, long_view, profile_enter."""
    *first, last = list(signals)
    return f"{user},{video},20220408,400,{time},{','.join(first)},{play},104400,0,0,{last},{rand},1"


def user(number: int, degree: str = "full_active", follows: str = "(0,10]") -> str:
    """A line of the users' features; a range with a comma is quoted, as published."""
    quoted = f'"{follows}"' if "," in follows else follows
    return f'{number},{degree},0,0,1,5,{quoted},312,"[100,1k)",0,0,3624,730+,' + ",".join(["1"] * 18)


def logs_of(edition: str) -> list[str]:
    """Names of the standard logs."""
    parts = ("_part1", "_part2") if edition == "27k" else ("",)
    return [f"log_standard_{time}_{edition}{part}.csv" for time in ("4_08_to_4_21", "4_22_to_5_08") for part in parts]


def write_edition(folder: Path, edition: str, files: dict[str, list[str]]) -> Path:
    """Files (name -> lines below the header) of an edition, unpacked; returns the edition's folder."""
    data = folder / FOLDERS[edition] / "data"
    data.mkdir(parents=True)
    for name, lines in files.items():
        header = USERS if name.startswith("user") else LOG
        (data / name).write_text("\n".join([header, *lines]) + "\n")
    return data.parent


def pack(folder: Path, archive: Path) -> Path:
    """The folder as a ``.tar.gz`` or ``.zip``, its own name inside, as published."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*.csv")):
                file.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder, folder.name)
    return archive


def small_edition(folder: Path, edition: str) -> Path:
    """Three users, a log each, with all that the configurations read."""
    names = logs_of(edition)
    files = {
        name: [event(u, 10 + place, 1_649_347_200_000 + place * 1000 + u, "10000010") for u in (3, 7, 9)]
        for place, name in enumerate(names)
    }
    files[f"log_random_4_22_to_5_08_{edition}.csv"] = [event(3, 99, 1_651_000_000_000, "01000000", rand=1)]
    files[f"user_features_{edition}.csv"] = [user(3), user(7, "UNKNOWN", "500+"), user(9, "", "0")]
    return write_edition(folder, edition, files)
