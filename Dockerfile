# On CPU:   docker build -t stzoo .
# On CUDA:  docker build -t stzoo:cuda --build-arg BASE=nvidia/cuda:13.0.0-base-ubuntu24.04 --build-arg TORCH_INDEX= .
# Use it:   docker run --rm --user "$(id -u)" -v "$PWD:/work" -v stzoo-cache:/cache stzoo bench MODEL --data DATA --output results
#           (on CUDA: docker run --gpus all ...)
#
# The CUDA libraries come with torch's wheels, so the CUDA base needs only what the driver asks for.
ARG BASE=python:3.11-slim
FROM ${BASE}

# hadolint ignore=DL3008
RUN command -v python3 || { \
      apt-get update && \
      apt-get install -y --no-install-recommends python3 python3-venv && \
      rm -rf /var/lib/apt/lists/*; \
    }
RUN python3 -m venv /opt/stzoo && install -d -m 1777 /work /cache
# The caches of stzoo and Hugging Face are in the home folder.
ENV PATH=/opt/stzoo/bin:$PATH HOME=/cache

# The dependencies come first, so that a change to the code keeps their layer.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /src/
RUN pip install --no-cache-dir --constraint /src/constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      torch sentence-transformers faiss-cpu scipy
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      /src /src/plugins/stzoo-retromae /src/plugins/stzoo-master /src/plugins/stzoo-taco

USER 10001
WORKDIR /work
ENTRYPOINT ["stzoo"]
CMD ["--help"]
