// The least that any CUDA program does before its first result: a context, one kernel, one line of output.
#include <cstdio>

__global__ void store(int *x) { *x = 1; }

int main() {
    int *x, found = 0;
    cudaMalloc(&x, sizeof(int));
    store<<<1, 1>>>(x);
    cudaMemcpy(&found, x, sizeof(int), cudaMemcpyDeviceToHost);
    puts(found == 1 ? "ready" : "no GPU");
    // Into a pipe, the line would else leave with the process.
    fflush(stdout);
    return found == 1 ? 0 : 1;
}
