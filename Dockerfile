# RecPod's images: targets cpu and cuda. docker/build.sh builds them with the right arguments; by hand:
#
#     docker build --target cpu .
#
# For the classic builder and for BuildKit. Each target has a base (Python; with CUDA also a C compiler), a stage that makes
# the environment from the locks, and the image itself: environment first, code last, so that a change of code rebuilds
# small layers only. The classic builder makes every stage above its target; docker/build.sh leaves the other target out, between
# the lines "# --- KIND ---". The two differ in base, locks and the settings named "this image" below; a test compares the rest.
#
# The defaults of the base images are the pins of docker/versions.env (a test compares them). BASE_IMAGE puts any Debian or
# Ubuntu image in their place.
ARG BASE_IMAGE=""
ARG CPU_BASE_IMAGE=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3
ARG CUDA_BASE_IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04@sha256:133c78a0575303be34164d0b90137a042172bdf60696af01a3c424ab402d86e2
# Where the CUDA environment is made: the base, or for KERNELS=source an image with nvcc and the same Python.
ARG CUDA_WHEELS_IMAGE=cuda-base

# --- cpu ---

FROM ${BASE_IMAGE:-$CPU_BASE_IMAGE} AS cpu-base
USER root
COPY docker/base.sh /opt/recpod/docker/
RUN bash /opt/recpod/docker/base.sh cpu

FROM cpu-base AS cpu-wheels
COPY docker/versions.env docker/wheels.sh docker/prune.sh /build/docker/
COPY docker/locks/cpu.txt docker/locks/torch-cpu.txt docker/locks/image.txt /build/docker/locks/
# A certificate of the network's and wheels, where there are any: docker/extras/README.md. Nothing of it leaves this stage.
COPY docker/extras/ /build/docker/extras/
RUN bash /build/docker/wheels.sh cpu /opt/venv /opt/recpod

FROM cpu-base AS cpu
COPY --from=cpu-wheels /opt/venv /opt/venv
# HOME and with it every cache lies in /tmp, so that any user and a read-only root will do; entrypoints/image.sh moves the
# caches worth keeping to the volume. PYTHONSAFEPATH: a folder "models" on the volume must not hide ours.
ENV PATH=/opt/venv/bin:$PATH RECPOD_VENV=/opt/venv HOME=/tmp USER=recpod LOGNAME=recpod LANG=C.UTF-8 \
    XDG_CACHE_HOME=/tmp/.cache XDG_CONFIG_HOME=/tmp/.config XDG_DATA_HOME=/tmp/.local \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
# This image:
ENV RECPOD_IMAGE=cpu
# Kernels are compiled once, here, from what they are made of. They are found again by the times of their sources, which
# the builder takes from the checkout and a registry cuts to seconds: so all are set to one.
COPY models/__init__.py models/batch.py /opt/recpod/models/
COPY models/kernels/ /opt/recpod/models/kernels/
RUN find /opt/recpod -exec touch --no-dereference --date=@1 {} + \
    && cd /opt/recpod && ls models/kernels/*/cpu.py | sed 's#/#.#g; s#^#import #; s#.py$##' | python -
COPY runpod_entrypoint.sh pyproject.toml /opt/recpod/
COPY docker/versions.env docker/gpu-matrix.json /opt/recpod/docker/
COPY configs/ /opt/recpod/configs/
COPY entrypoints/ /opt/recpod/entrypoints/
COPY models/ /opt/recpod/models/
COPY pipelines/ /opt/recpod/pipelines/
# Whatever the checkout's umask was, everybody may read and nobody but root may write.
RUN find /opt/recpod -exec touch --no-dereference --date=@1 {} + \
    && chmod -R u=rwX,go=rX /opt/recpod && mkdir -p /workspace && chmod 1777 /workspace \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/recpod/models /opt/recpod/pipelines
WORKDIR /workspace
USER 1000:0
ENTRYPOINT ["dumb-init", "--single-child", "--", "/opt/recpod/entrypoints/image.sh"]
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s --retries=3 CMD ["recpod", "preflight", "--fast"]
ARG COMMIT=unknown
ARG VERSION=unknown
ARG PINS="docker/versions.env of this commit"
ARG BASE_NAME="see org.opencontainers.image.revision"
ENV RECPOD_COMMIT=$COMMIT
LABEL org.opencontainers.image.title="RecPod (cpu)" \
      org.opencontainers.image.revision=$COMMIT \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.base.name=$BASE_NAME \
      recpod.pins=$PINS

# --- cuda ---

FROM ${BASE_IMAGE:-$CUDA_BASE_IMAGE} AS cuda-base
USER root
COPY docker/base.sh /opt/recpod/docker/
RUN bash /opt/recpod/docker/base.sh cuda

FROM ${CUDA_WHEELS_IMAGE} AS cuda-wheels
USER root
COPY docker/base.sh /build/docker/
RUN bash /build/docker/base.sh cuda
# mamba-ssm and causal-conv1d: prebuilt (checked sums, Python 3.12), source (needs nvcc) or none. The Triton kernels do the
# same work without them.
ARG KERNELS=none
COPY docker/versions.env docker/wheels.sh docker/prune.sh /build/docker/
COPY docker/locks/cuda.txt docker/locks/cuda-kernels.txt docker/locks/image.txt /build/docker/locks/
COPY docker/extras/ /build/docker/extras/
RUN bash /build/docker/wheels.sh cuda /opt/venv /opt/recpod

FROM cuda-base AS cuda
COPY --from=cuda-wheels /opt/venv /opt/venv
# HOME and with it every cache lies in /tmp, so that any user and a read-only root will do; entrypoints/image.sh moves the
# caches worth keeping to the volume. PYTHONSAFEPATH: a folder "models" on the volume must not hide ours.
ENV PATH=/opt/venv/bin:$PATH RECPOD_VENV=/opt/venv HOME=/tmp USER=recpod LOGNAME=recpod LANG=C.UTF-8 \
    XDG_CACHE_HOME=/tmp/.cache XDG_CONFIG_HOME=/tmp/.config XDG_DATA_HOME=/tmp/.local \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
# This image:
ENV RECPOD_IMAGE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Kernels are compiled once, here, from what they are made of. They are found again by the times of their sources, which
# the builder takes from the checkout and a registry cuts to seconds: so all are set to one.
COPY models/__init__.py models/batch.py /opt/recpod/models/
COPY models/kernels/ /opt/recpod/models/kernels/
RUN find /opt/recpod -exec touch --no-dereference --date=@1 {} + \
    && cd /opt/recpod && ls models/kernels/*/cpu.py | sed 's#/#.#g; s#^#import #; s#.py$##' | python -
COPY runpod_entrypoint.sh pyproject.toml /opt/recpod/
COPY docker/versions.env docker/gpu-matrix.json /opt/recpod/docker/
COPY configs/ /opt/recpod/configs/
COPY entrypoints/ /opt/recpod/entrypoints/
COPY models/ /opt/recpod/models/
COPY pipelines/ /opt/recpod/pipelines/
# Whatever the checkout's umask was, everybody may read and nobody but root may write.
RUN find /opt/recpod -exec touch --no-dereference --date=@1 {} + \
    && chmod -R u=rwX,go=rX /opt/recpod && mkdir -p /workspace && chmod 1777 /workspace \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/recpod/models /opt/recpod/pipelines
WORKDIR /workspace
USER 1000:0
ENTRYPOINT ["dumb-init", "--single-child", "--", "/opt/recpod/entrypoints/image.sh"]
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s --retries=3 CMD ["recpod", "preflight", "--fast"]
ARG COMMIT=unknown
ARG VERSION=unknown
ARG PINS="docker/versions.env of this commit"
ARG BASE_NAME="see org.opencontainers.image.revision"
ENV RECPOD_COMMIT=$COMMIT
LABEL org.opencontainers.image.title="RecPod (cuda)" \
      org.opencontainers.image.revision=$COMMIT \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.base.name=$BASE_NAME \
      recpod.pins=$PINS
