# Two images: `docker build --target cpu .`, the default, and `docker build --target cuda .`. docs/deployment.md
# has the commands to build and run them.

# The Python and the Debian that the tests run on.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Of build requirements too, which older versions of pip read from the first and newer ones from the second.
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_BUILD_CONSTRAINT=/source/constraints.txt
WORKDIR /source
COPY constraints.txt ./
# The base image's pip installs into it: nobody needs one in there later.
RUN python -m venv --without-pip /opt/gradless

# PyTorch in a layer of its own: it is nearly all of the bytes, and changes least.
FROM build AS build-cuda
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/gradless/bin/python install --only-binary :all: torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY gradless gradless
COPY models models
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/gradless/bin/python install '.[gpu,grpc,otel]'
# No image comes of a model that cannot be loaded and run; any processor will do. What would write to a home does
# without.
RUN HOME=/nonexistent \
    /opt/gradless/bin/gradless compare --arms served --batch-size 1 --iterations 1 --fail-on-retained

FROM build AS build-cpu
# The registry's build of PyTorch brings CUDA along; this index has builds without. --build-arg
# TORCH_INDEX=https://pypi.org/simple takes the registry's, which is the one that the tests run on.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Nothing but these two is taken from there: what they need comes from the registry, with the project.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/gradless/bin/python install --only-binary :all: \
    --index-url "${TORCH_INDEX}" --no-deps torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY gradless gradless
COPY models models
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/gradless/bin/python install '.[openvino,grpc,otel]'
# As above, and it converts the default model for OpenVINO: no start has to, and a read-only image serves.
RUN HOME=/nonexistent GRADLESS_CACHE_FOLDER=/var/cache/gradless \
    /opt/gradless/bin/gradless compare --arms served --batch-size 1 --iterations 1 --fail-on-retained

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gradless" \
      org.opencontainers.image.description="Image-model serving, batched, under torch.inference_mode" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Without a home: nothing is written to but the folder below.
RUN groupadd --gid 10001 gradless \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /nonexistent gradless \
    && install --directory --owner 10001 --group 10001 /var/cache/gradless
# One folder, for converted models and downloaded weights: who serves others than the default mounts a volume there.
ENV PATH=/opt/gradless/bin:$PATH \
    HOME=/nonexistent \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GRADLESS_HOST=0.0.0.0 \
    GRADLESS_PORT=8000 \
    GRADLESS_CACHE_FOLDER=/var/cache/gradless \
    TORCH_HOME=/var/cache/gradless/torch
USER 10001:10001
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
# By http.client, which asks no proxy of the environment. -I and -S spare half of Python's start.
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python", "-I", "-S", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['GRADLESS_PORT']), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["gradless"]
CMD ["serve"]

FROM runtime AS cuda
# Without a GPU it says so and ends, where auto would serve on the CPU.
ENV GRADLESS_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/gradless /opt/gradless

FROM runtime AS cpu
COPY --from=build-cpu /opt/gradless /opt/gradless
COPY --from=build-cpu --chown=10001:10001 /var/cache/gradless /var/cache/gradless
