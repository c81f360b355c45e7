# The packages of uv.lock, for runs in a clone that is mounted or made inside: the code is not in the image.
# docs/deployment.md has the commands.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make openssh-client \
    && rm --recursive --force /var/lib/apt/lists/* && useradd --create-home --uid 1000 detection
COPY --from=ghcr.io/astral-sh/uv:0.13 /uv /usr/local/bin/uv
WORKDIR /opt/detection
COPY pyproject.toml uv.lock README.md ./
# The user of the image cannot write bytecode there, and would compile torch in each process.
ENV UV_PROJECT_ENVIRONMENT=/opt/detection/.venv UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
# Another build of torch brings its own CUDA packages, or none.
ARG TORCH_INDEX=
RUN set -eu; skip=; if [ -n "$TORCH_INDEX" ]; then \
      skip=$(sed -n '/^name = "nvidia-ml-py"/d; s/^name = "\(\(cuda\|nvidia\|torch\|triton\)[^"]*\)"/--no-install-package \1/p' uv.lock); \
    fi; \
    uv sync --locked --no-install-project --extra export --extra serve --extra team --no-default-groups --no-cache $skip; \
    if [ -n "$TORCH_INDEX" ]; then \
      uv pip install --no-cache --index-url "$TORCH_INDEX" "torch>=2.11" "torchvision>=0.26"; \
    fi
ENV PATH=/opt/detection/.venv/bin:$PATH PYTHONPATH=/work MLFLOW_DISABLE_TELEMETRY=true DVC_NO_ANALYTICS=true HOME=/tmp
RUN printf '#!/bin/sh\nexec python -m detection.cli "$@"\n' > .venv/bin/detection && chmod 755 .venv/bin/detection
RUN install --directory --owner detection /work
WORKDIR /work
USER detection
