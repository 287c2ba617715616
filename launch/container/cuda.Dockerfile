# An image for NVIDIA GPUs. From the top of the repository:
#   docker build --file launch/container/cuda.Dockerfile --tag bsq-jax:cuda .
#   docker run --gpus all --shm-size 8g --volume "$PWD/runs:/runs" bsq-jax:cuda \
#     python -m bsq_jax.main --config configs/quickstart.py --workdir /runs/quickstart
# CUDA and cuDNN come with JAX from PyPI; the host needs a driver for CUDA 13 and NVIDIA's container
# toolkit.
FROM python:3.12-slim

# The compilation cache outlives the container where /runs is a volume.
ENV PYTHONUNBUFFERED=1 \
    JAX_COMPILATION_CACHE_DIR=/runs/.compiled \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1

WORKDIR /bsq_jax
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt "jax[cuda13]"
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .

CMD ["python", "-m", "bsq_jax", "--help"]
