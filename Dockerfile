# syntax=docker/dockerfile:1
# Usage: docker build -t compressor .
#        docker run --rm -v "$PWD:/work" compressor demo --out /work/demo-out
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
# Where torch and torchvision come from; https://download.pytorch.org/whl/cu128 gives CUDA wheels.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/compressor
ENV PATH=/opt/compressor/bin:$PATH
# The large wheels first: this layer stays cached while the sources change.
RUN pip install --index-url "${TORCH_INDEX}" torch torchvision
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY compressor ./compressor
RUN pip install .

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="compressor" \
      org.opencontainers.image.description="Low-rank model compression guided by neural collapse" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 1000 --create-home compressor \
 && mkdir /cache /work \
 && chown compressor:compressor /cache /work
COPY --from=build /opt/compressor /opt/compressor
ENV PATH=/opt/compressor/bin:$PATH \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib \
    PYTHONDONTWRITEBYTECODE=1
USER compressor
WORKDIR /work
VOLUME ["/cache"]
ENTRYPOINT ["compressor"]
CMD ["--help"]
