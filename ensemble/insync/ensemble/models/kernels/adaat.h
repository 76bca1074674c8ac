// AdaAT's arithmetic: the input position of each output pixel, and the value interpolated there.
//
// Compiles as CUDA (nvcc, and NVRTC, which has no standard headers) and as plain C++: tests run the same code on the CPU.
#pragma once

#ifdef __CUDACC__
#define ADAAT_INLINE __host__ __device__ __forceinline__
#else
#include <math.h>
#define ADAAT_INLINE inline
#endif

// A plane is stored with zeros around it, so that a clamped coordinate reads four values without a branch: a row above, two
// below, and between the rows four columns that are right of one row and left of the next. Four, because rows are then aligned
// to 16 bytes if the width is a multiple of four.
constexpr int ADAAT_BORDER = 4;

// Floats from one row to the next.
ADAAT_INLINE int adaat_stride(int width) { return (width + 3) / 4 * 4 + ADAAT_BORDER; }

// Floats that a plane takes with its border.
ADAAT_INLINE int adaat_floats(int height, int width) { return (height + 3) * adaat_stride(width) + ADAAT_BORDER; }

// Maps an output position, in pixels, to the input position in the bordered plane. In pixels the plane's aspect ratio cancels
// out of PyTorch's formula, which is in half widths and half heights: rotation stays a rotation.
struct AdaatSimilarity {
    float cos, sin, left, top;
};

// affine: scale, rotation in radians, translation x, y in half widths and half heights.
ADAAT_INLINE AdaatSimilarity adaat_similarity(const float* affine, int height, int width) {
    float sin, cos;
    sincosf(affine[1], &sin, &cos);
    sin *= affine[0];
    cos *= affine[0];
    const float middle_x = 0.5f * static_cast<float>(width - 1), middle_y = 0.5f * static_cast<float>(height - 1);
    const float left = 0.5f * static_cast<float>(width) * affine[2] + middle_x + 1;
    const float top = 0.5f * static_cast<float>(height) * affine[3] + middle_y + 1;
    return {cos, sin, left - (cos * middle_x - sin * middle_y), top - (sin * middle_x + cos * middle_y)};
}

// False for infinities and not-a-number.
ADAAT_INLINE bool adaat_finite(const float* affine) {
    bool finite = true;
    for (int i = 0; i < 4; ++i) finite &= fabsf(affine[i]) <= 3.402823466e38f;
    return finite;
}

// One value of the output. bordered: the plane with its border, of adaat_floats(height, width).
ADAAT_INLINE float adaat_sample(const float* bordered, const AdaatSimilarity& s, int row, int column, int height, int width) {
    const float x = static_cast<float>(column), y = static_cast<float>(row);
    // fmaxf and fminf return the operand that is a number: not-a-number is clamped to the border, which is zero.
    const float u = fminf(fmaxf(s.cos * x - s.sin * y + s.left, 0), static_cast<float>(width + 1));
    const float v = fminf(fmaxf(s.sin * x + s.cos * y + s.top, 0), static_cast<float>(height + 1));
    const int j = static_cast<int>(u), i = static_cast<int>(v), stride = adaat_stride(width);
    const float right = u - static_cast<float>(j), below = v - static_cast<float>(i);
    const float* at = bordered + (ADAAT_BORDER - 1) + i * stride + j;
    const float upper = at[0] + right * (at[1] - at[0]);
    const float lower = at[stride] + right * (at[stride + 1] - at[stride]);
    return upper + below * (lower - upper);
}
