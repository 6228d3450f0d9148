#!/usr/bin/env bash
# In the Dockerfile's wheels stages: takes out of the environment VENV what no run uses, and proves that the rest imports.
set -euo pipefail

main() {
  local kind="$1" venv="$2" packages before
  packages="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  before="$(du -sm "$venv" | cut -f1)"
  "$venv/bin/python" -m pip uninstall --yes --quiet pip
  drop_tests "$packages"
  drop_torch_programs "$packages"
  drop_sources "$packages"
  # What extensions are compiled with: there is no compiler in the cpu image.
  if [[ "$kind" == cpu ]]; then rm -rf "$packages"/torch/{include,share/cmake} "$packages"/pyarrow/include; fi
  "$venv/bin/python" - "$kind" <<'PYTHON'
import importlib.util, sys
names = "torch torch.distributed.run numba numpy scipy.stats sklearn.metrics pandas polars pyarrow.parquet pydantic typer yaml"
names += " mlflow wandb gdown recbole matplotlib.pyplot plotly docker"
if sys.argv[1] == "cuda":
    names += " triton megatron.core"
for name in names.split():
    importlib.import_module(name)
# These load the driver's libraries, which a builder has not.
missing = [name for name in ("torchrec", "fbgemm_gpu") if importlib.util.find_spec(name) is None]
if sys.argv[1] == "cuda" and missing:
    sys.exit(f"error: not installed: {missing}")
PYTHON
  echo "environment: $(du -sm "$venv" | cut -f1) MB, of $before MB installed"
}

# Of packages that do not import their own tests.
drop_tests() {
  local name
  for name in pandas scipy sklearn pyarrow matplotlib mpl_toolkits sympy networkx polars joblib; do
    if [[ -d "$1/$name" ]]; then
      find "$1/$name" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
    fi
  done
}

# Its own test programs and the compiler of its file formats; DataLoader's workers need the one that stays.
drop_torch_programs() {
  find "$1/torch/bin" -type f ! -name torch_shm_manager -delete
  rm -rf "$1"/torch/test "$1"/torch/lib/lib{jitbackend_test,backend_with_compiler,torchbind_test,aoti_custom_ops}.so
}

drop_sources() {
  find "$1" -type f \( -name '*.a' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' \) -delete
}

main "$@"
