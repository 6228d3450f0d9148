"""What set-up and training may see of the environment, and where secrets come from.

A pod's environment holds keys of the whole account. Training gets named variables only; the provider's key and the
webhook's address never leave the supervisor. No value is printed anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import ConfigError

# A trailing * stands for any rest, a leading one for any beginning.
EVERYWHERE = (
    *("PATH", "HOME", "PWD", "SHELL", "USER", "LOGNAME", "HOSTNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR"),
    *("TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_*", "CI", "XDG_*", "PYTHON*"),
    *("SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "*_proxy", "*_PROXY", "LD_LIBRARY_PATH", "RECPOD_*"),
    *("CUDA_*", "CUBLAS_*", "NVIDIA_*", "OMP_*", "KMP_*", "GOMP_*", "MKL_*", "OPENBLAS_*", "NUMBA_*", "MALLOC_*"),
)
SET_UP = ("PIP_*", "PYENV_*", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "MAMBA_*", "CAUSAL_CONV1D_*")
TRAINING = (
    *("WANDB_*", "MLFLOW_*", "NCCL_*", "GLOO_*", "TORCH*", "PYTORCH_*", "TRITON_*", "POLARS_*", "MPLCONFIGDIR"),
    *("MASTER_*",),
)
ALLOW = "RECPOD_ENV_ALLOW"  # further names and patterns, parted by commas
SECRETS_FOLDER = "RECPOD_SECRETS"  # where mounted secrets lie, one file each, named in lower case
TRAINING_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
OWN_SECRETS = ("RUNPOD_API_KEY", "RECPOD_WEBHOOK")
OWN_SETTINGS = ("RECPOD_STOP_COMMAND", "RECPOD_RUNPOD_API")  # how to stop the pod is nobody else's business


def read_secret(name: str, environ: Mapping[str, str]) -> str | None:
    """A secret from the variable ``name``, the file that ``name_FILE`` points to, or a mounted file; None without any.

    Raises:
        ConfigError: the file is named and cannot be read, or a secret is not one line.
    """
    where, text = name, environ.get(name, "").strip()
    if not text:
        pointer = environ.get(f"{name}_FILE", "")
        folder = Path(environ.get(SECRETS_FOLDER) or "/run/secrets")
        path = Path(pointer) if pointer else folder / name.lower()
        if not pointer and not path.exists():
            return None
        where = f"{name}_FILE" if pointer else str(path)
        text = _read(path, where)
    if not text or not text.isprintable() or " " in text:
        raise ConfigError("the secret is empty, or more than one word", where=where, fix="store the bare value there")
    return text


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        what = f"the secret's file cannot be read ({reason})"
        raise ConfigError(what, where=where, fix="mount it readable") from error


def set_up_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the set-up sees: the common names and pip's, no secret of ours."""
    kept = _only(environ, (*EVERYWHERE, *SET_UP, *_extension(environ)))
    return {name: value for name, value in kept.items() if name not in TRAINING_SECRETS}


def training_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What training sees, the trackers' keys included wherever they came from.

    Raises:
        ConfigError: a secret's file cannot be read, or ``RECPOD_ENV_ALLOW`` holds something else than names.
    """
    kept = _only(environ, (*EVERYWHERE, *TRAINING, *_extension(environ)))
    for name in TRAINING_SECRETS:
        kept.pop(f"{name}_FILE", None)
        value = read_secret(name, environ)
        if value is not None:
            kept[name] = value
    return kept


def withheld(environ: Mapping[str, str]) -> list[str]:
    """Names that training does not see."""
    return sorted(environ.keys() - training_environment(environ).keys())


def _only(environ: Mapping[str, str], patterns: tuple[str, ...]) -> dict[str, str]:
    never = {*OWN_SETTINGS, *(variable for name in OWN_SECRETS for variable in (name, f"{name}_FILE"))}
    return {
        name: value
        for name, value in environ.items()
        if name not in never and any(_matches(name, pattern) for pattern in patterns)
    }


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("*"):
        return name.endswith(pattern[1:])
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _extension(environ: Mapping[str, str]) -> tuple[str, ...]:
    patterns = tuple(part.strip() for part in environ.get(ALLOW, "").split(",") if part.strip())
    for pattern in patterns:
        if not re.fullmatch(r"[A-Za-z_]\w*\*?", pattern):
            fix = "give names or PREFIX_*, parted by commas"
            raise ConfigError(f"'{pattern}' is no name of a variable", where=ALLOW, fix=fix)
    return patterns
