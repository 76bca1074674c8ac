// AdaAT on the GPU: each channel of a feature map warped by its own similarity, bilinearly, with zeros beyond the edges.
//
// Adaptive affine transformation (Zhang et al., 2022). Equivalent to `affine_grid` and `grid_sample` for each channel, without
// the grid tensor (twice as large as the features), and with each value read from and written to device memory once.
// One block warps one plane, which is in shared memory, where reads at any angle cost almost nothing.
#include "adaat.h"

constexpr int ADAAT_THREADS = 128;
constexpr int ADAAT_SAMPLES = 32;  // in one launch

// One sample of a batch: reference [C, H, W], affine [C, 4], aligned [C, H, W], each contiguous. Samples come from different
// requests and are anywhere in memory: one launch processes them all, without copying them into one batch first.
struct AdaatSample {
    const float* reference;
    const float* affine;
    float* aligned;
};

struct AdaatSamples {
    AdaatSample sample[ADAAT_SAMPLES];
};

// index / divisor by a multiplication, for 1 < divisor and index × divisor < 2³².
struct AdaatDivisor {
    unsigned int divisor, factor;

    __device__ explicit AdaatDivisor(int divisor)
        : divisor(static_cast<unsigned int>(divisor)), factor(0xffffffffu / static_cast<unsigned int>(divisor) + 1) {}

    __device__ int quotient(int index) const {
        return static_cast<int>(divisor == 1 ? index : __umulhi(static_cast<unsigned int>(index), factor));
    }
};

// Zeros the border of a plane whose width is a multiple of four.
__device__ void adaat_clear_border(float4* bordered, int height, int width) {
    const int stride = adaat_stride(width) / 4, below = 2 * stride + 1;
    for (int k = threadIdx.x; k < stride + height + below; k += blockDim.x) {
        int at = k;  // in the row above the plane
        if (k >= stride) at = (k - stride + 1) * stride;  // left of each row
        if (k >= stride + height) at = (height + 1) * stride + (k - stride - height);
        bordered[at] = make_float4(0, 0, 0, 0);
    }
}

// Device memory → shared memory, 16 bytes at a time.
__device__ void adaat_load(float4* bordered, const float4* plane, int height, int width) {
    const AdaatDivisor columns(width / 4);
    const int count = height * width / 4, stride = adaat_stride(width) / 4;
#pragma unroll 4
    for (int k = threadIdx.x; k < count; k += blockDim.x) {
        const int row = columns.quotient(k);
        bordered[(row + 1) * stride + 1 + (k - row * (width / 4))] = __ldg(plane + k);
    }
}

// The same for any width and any address.
__device__ void adaat_load_any(float* bordered, const float* plane, int height, int width) {
    const AdaatDivisor columns(width);
    const int stride = adaat_stride(width);
    for (int k = threadIdx.x; k < adaat_floats(height, width); k += blockDim.x) bordered[k] = 0;
    __syncthreads();
    for (int k = threadIdx.x; k < height * width; k += blockDim.x) {
        const int row = columns.quotient(k);
        bordered[(row + 1) * stride + ADAAT_BORDER + (k - row * width)] = __ldg(plane + k);
    }
}

// Grid: [channels, samples]. Shared memory: adaat_floats(height, width) + 4 floats.
// not_finite: one int for each sample, set to 1 if its affine holds infinities or not-a-number; those channels of aligned are 0.
extern "C" __global__ void __launch_bounds__(ADAAT_THREADS)
    insync_adaat(const AdaatSamples samples, int height, int width, int* not_finite) {
    extern __shared__ float4 adaat_shared[];  // one similarity, then the plane with its border
    AdaatSimilarity* similarity = reinterpret_cast<AdaatSimilarity*>(adaat_shared);
    float* bordered = reinterpret_cast<float*>(adaat_shared + 1);

    const AdaatSample& sample = samples.sample[blockIdx.y];
    const size_t offset = static_cast<size_t>(blockIdx.x) * height * width;
    const float* plane = sample.reference + offset;
    if (threadIdx.x == 0) {  // once, while the other threads load the plane
        const float* affine = sample.affine + 4 * blockIdx.x;
        const bool finite = adaat_finite(affine);
        *similarity = finite ? adaat_similarity(affine, height, width) : AdaatSimilarity{0, 0, 0, 0};
        if (!finite) not_finite[blockIdx.y] = 1;
    }
    if (width % 4 == 0 && reinterpret_cast<size_t>(plane) % sizeof(float4) == 0) {
        adaat_clear_border(adaat_shared + 1, height, width);
        adaat_load(adaat_shared + 1, reinterpret_cast<const float4*>(plane), height, width);
    } else {
        adaat_load_any(bordered, plane, height, width);
    }
    __syncthreads();

    const AdaatSimilarity s = *similarity;
    const AdaatDivisor columns(width);
    float* aligned = sample.aligned + offset;
    for (int k = threadIdx.x; k < height * width; k += blockDim.x) {  // adjacent threads write adjacent values: coalesced
        const int row = columns.quotient(k);
        aligned[k] = adaat_sample(bordered, s, row, k - row * width, height, width);
    }
}
