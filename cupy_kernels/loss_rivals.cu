// What the losses with M = 1 need before their samples: peaks and log-sum-exps of the input, and L'.
#include "loss.cuh"

// NHWC. Per pixel of the input its largest logit, in base 2, and, unless `sums` is null, the sum of the exponentials less that.
// Eight lanes per pixel.
template <typename T>
__global__ void __launch_bounds__(256) input_peaks(
    const T* __restrict__ input, Acc<T>* __restrict__ peaks, Acc<T>* __restrict__ sums, int pixels, int C) {
    using A = Acc<T>;
    constexpr int LANES = 8;
    const int lane = threadIdx.x % LANES, pixel = (int)(blockIdx.x * (256 / LANES) + threadIdx.x / LANES);
    const T* u = input + (size_t)min(pixel, pixels - 1) * C;  // a surplus group repeats the last pixel and writes nothing
    A peak = -infinity<A>();
#pragma unroll 4
    for (int c = lane; c < C; c += LANES) peak = larger(peak, widen(u[c]));
#pragma unroll
    for (int d = LANES / 2; d > 0; d /= 2) peak = larger(peak, __shfl_xor_sync(ALL_LANES, peak, d));
    peak *= (A)LOG2_E;
    const bool writes = lane == 0 && pixel < pixels;
    if (writes) peaks[pixel] = peak;
    if (sums != nullptr) {
        A sum = 0;
#pragma unroll 1
        for (int c = lane; c < C; c += LANES) sum += exp_2(mad(widen(u[c]), (A)LOG2_E, -peak));
        sum = group_sum<LANES>(sum);
        if (writes) sums[pixel] = sum;
    }
}

// The sum of what LANES lanes would hold, in the order of `group_sum`.
template <int LANES, typename A> __device__ __forceinline__ A sum_as_group(A* part) {
    if constexpr (LANES == 1) {
        return part[0];
    } else {
#pragma unroll
        for (int l = 0; l < LANES / 2; ++l) part[l] = plus(part[l], part[l + LANES / 2]);
        return sum_as_group<LANES / 2>(part);
    }
}

template <typename T> constexpr int RESIDENT = sizeof(T) == 8 ? 2 : 4;  // blocks of 128 threads: double needs more registers

// L' of each pixel, in base 2, NHWC. A warp takes eight cells. Its lanes first bring the planes of 32 channels into shared
// memory; then each sums the exponentials of up to SPAN neighbouring pixels of one cell, whose row it interpolates once.
template <typename T, int LANES>
__global__ void __launch_bounds__(128, RESIDENT<T>) bilinear_losses(
    const T* __restrict__ input, const Acc<T>* __restrict__ peaks, const long long* __restrict__ target, Acc<T>* __restrict__ loss,
    int cells, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, Divisor by_hw, Divisor by_w, Divisor by_spans) {
    using A = Acc<T>;
    constexpr int CELLS = 8, SPAN = sizeof(A) == 8 ? 1 : LANES < 32 ? 4 : 1, CHANNELS = 32, STRIDE = CELLS + 1;
    LAU_DYNAMIC_SHARED(Plane<A>, shared);
    Plane<A>* const planes = shared + threadIdx.x / 32 * CHANNELS * STRIDE;
    const int lane = threadIdx.x % 32, mine = lane % CELLS;
    const int first = (int)(blockIdx.x * (128 / 32) + threadIdx.x / 32) * CELLS;
    if (first >= cells) return;
    const int cell = min(first + mine, cells - 1), image = quotient(cell, by_hw), node = cell - image * h * w;
    const int i = quotient(node, by_w), j = node - i * w, right = j < w - 1 ? 1 : 0, below = i < h - 1 ? w : 0;
    const A peak = peak_of_cell(peaks + cell, right, below);
    const int spans = (kw + SPAN - 1) / SPAN;
    for (int strip = lane / CELLS; strip - lane / CELLS < kh * spans; strip += 32 / CELLS) {
        const int row = min(quotient(strip, by_spans), kh - 1), column = (strip - quotient(strip, by_spans) * spans) * SPAN;
        const A ty = locate(base_position<A>(i, row, kh, rkh), h).t;
        A tx[SPAN], part[SPAN][LANES];
#pragma unroll
        for (int p = 0; p < SPAN; ++p) {
            tx[p] = locate(base_position<A>(j, min(column + p, kw - 1), kw, rkw), w).t;
#pragma unroll
            for (int l = 0; l < LANES; ++l) part[p][l] = (A)0;
        }
        for (int block = 0; block < C; block += CHANNELS) {
            __syncwarp();
#pragma unroll
            for (int s = 0; s < CELLS; ++s) {
                const int to_right = __shfl_sync(ALL_LANES, right, s) * C, to_below = __shfl_sync(ALL_LANES, below, s) * C;
                const A peak_s = __shfl_sync(ALL_LANES, peak, s);
                Plane<A> plane = {(A)NO_LOGIT, (A)0, (A)0, (A)0};
                if (block + lane < C)
                    plane = plane_at(input + (size_t)min(first + s, cells - 1) * C + block + lane, to_right, to_below, peak_s);
                planes[lane * STRIDE + s] = plane;
            }
            __syncwarp();
#pragma unroll 1
            for (int c = 0; c < min(CHANNELS, C - block); c += LANES) {
#pragma unroll
                for (int l = 0; l < LANES; ++l) {
                    const Plane<A> plane = planes[(c + l) * STRIDE + mine];
                    const A at_left = mad(ty, plane.down, plane.near), slope = along_x(plane, ty);
#pragma unroll
                    for (int p = 0; p < SPAN; ++p) part[p][l] = plus(part[p][l], exp_2(mad(tx[p], slope, at_left)));
                }
            }
        }
        const T* u = input + (size_t)cell * C;
        const size_t start = (((size_t)image * h + i) * kh + row) * (w * kw) + j * kw + column;
        const bool writes = first + mine < cells && strip < kh * spans;
#pragma unroll
        for (int p = 0; p < SPAN; ++p) {
            A sum = sum_as_group<LANES>(part[p]), shift = 0;
            for (unsigned lost = __ballot_sync(ALL_LANES, is_lost(sum)); lost != 0; lost &= lost - 1) {
                const int from = __ffs((int)lost) - 1;
                const T* other = input + (size_t)__shfl_sync(ALL_LANES, cell, from) * C;
                const int to_right = __shfl_sync(ALL_LANES, right, from) * C, to_below = __shfl_sync(ALL_LANES, below, from) * C;
                const A peak_ = __shfl_sync(ALL_LANES, peak, from);
                const A ty_ = __shfl_sync(ALL_LANES, ty, from), tx_ = __shfl_sync(ALL_LANES, tx[p], from);
                const A largest = largest_logit(other, to_right, to_below, C, peak_, ty_, tx_);
                const A all = sum_of_group<LANES>(other, to_right, to_below, C, peak_, ty_, tx_, largest);
                if (lane == from) {
                    sum = all;
                    shift = largest;
                }
            }
            if (!writes || column + p >= kw) continue;
            const long long label = target[start + p];
            const bool known = label >= 0 && label < C;
            const Plane<A> plane = plane_at(u + (known ? (int)label : 0), right * C, below * C, peak);
            loss[start + p] = loss_of(sum, labelled(logit_of(plane, ty, tx[p]) - shift));
        }
    }
}
