# syntax=docker/dockerfile:1
# The image that runs `compressor`: README.md, "Docker", tells how it is built and run.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Empty; `--build-context wheels=DIR` puts a directory of wheels in its place, and with
# `--build-arg PIP_NO_INDEX=1` the build needs no network.
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS build
# Where torch and torchvision come from: CUDA wheels lie at …/whl/cu130. Empty: with all the rest.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras of the package, for instance [export].
ARG EXTRAS=""
# Read by pip where they are given: another index, or none.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# pip has an environment of its own, and so none in the image.
RUN python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Everything but the package itself: this layer is kept while only sources change.
RUN --mount=type=bind,from=wheels,target=/wheels \
    mkdir compressor \
 && touch compressor/__init__.py \
 && if [ -n "${TORCH_INDEX}" ]; then \
      /opt/pip/bin/pip --python /opt/venv/bin/python3 install --no-deps \
        --index-url "${TORCH_INDEX}" --constraint constraints.txt torch torchvision; \
    fi \
 && /opt/pip/bin/pip --python /opt/venv/bin/python3 install --constraint constraints.txt ".${EXTRAS}" \
 && /opt/pip/bin/pip --python /opt/venv/bin/python3 uninstall --yes compressor
COPY compressor ./compressor
RUN --mount=type=bind,from=wheels,target=/wheels \
    rm -rf build \
 && /opt/pip/bin/pip --python /opt/venv/bin/python3 install --no-deps --target /opt/app .

FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="compressor" \
      org.opencontainers.image.description="Low-rank model compression guided by neural collapse" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# Everybody may write to /cache: a container may be run as any user (--user).
RUN useradd --uid 1000 --home-dir /cache --no-create-home compressor \
 && install --directory --mode 1777 /cache \
 && install --directory --owner compressor --group compressor /work
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/app /opt/app
# All that is ever written outside of /work goes to the volume, so that the root can be read-only.
ENV PATH=/opt/app/bin:/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/app \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib
USER 1000:1000
WORKDIR /work
VOLUME ["/cache"]
ENTRYPOINT ["compressor"]
CMD ["--help"]
