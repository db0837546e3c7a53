// LaU, forward: V[Y, X] = U(Y / k_h + dy[Y, X], X / k_w + dx[Y, X]), clamped to the border.
//
// offset is (N, 2M, H, W), or null for zero offsets.
#include "tiles.cuh"

// NCHW. A thread computes PIXELS consecutive pixels of `channels_per_block` channels: the taps are computed once, and the
// store is one instruction. RIGHT is the distance from a tap to its right neighbour: 0 only if w = 1. Grid: pixels,
// channels, maps. C channels per map.
template <typename T, int PIXELS, int RIGHT>
__global__ void __launch_bounds__(256) lau_forward_nchw(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, T* __restrict__ output,
    int maps, int M, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, int channels_per_block) {
    using A = Acc<T>;
    const int hw = h * w, HW = hw * kh * kw;
    const int pixel = (blockIdx.x * blockDim.x + threadIdx.x) * PIXELS;
    if (pixel >= HW) return;
    const int first = blockIdx.y * channels_per_block, last = min(C, first + channels_per_block);
    for (int map = blockIdx.z; map < maps; map += gridDim.z) {
        Weights<A> weight[PIXELS];
        unsigned top[PIXELS], bottom[PIXELS];  // of the left taps, in bytes from a base that all threads share
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            const Position<A> p = position_of(offset, map, M, pixel + i, h, w, kh, kw, rkh, rkw);
            const Axis<A> y = locate_pair(p.y, h), x = locate_pair(p.x, w);
            weight[i] = tap_weights(y.t, x.t);
            top[i] = (unsigned)(y.cell * w + x.cell) * sizeof(T);
            bottom[i] = top[i] + (unsigned)(y.far * w) * sizeof(T);
        }
        const size_t plane = (size_t)map * C + first;
        const char* u = reinterpret_cast<const char*>(input + plane * hw);
        T* v = output + plane * HW;
#pragma unroll 2
        for (int c = first; c < last; ++c, u += hw * sizeof(T), v += HW) {
            Vec<T, PIXELS> out;
#pragma unroll
            for (int i = 0; i < PIXELS; ++i) {
                const T* above = reinterpret_cast<const T*>(u + top[i]);
                const T* below = reinterpret_cast<const T*>(u + bottom[i]);
                out.v[i] = narrow<T>(blend<A>(weight[i], widen(above[0]), widen(above[RIGHT]), widen(below[0]), widen(below[RIGHT])));
            }
            stream<PIXELS>(v + pixel, out);
        }
    }
}

// NCHW, M = 1, maps of more than one row and column, W a multiple of PIXELS. A block computes a tile: LANES lanes share
// PIXELS neighbouring pixels and compute VEC channels each, for GROUPS such groups, CHUNK channels at a time. `capacity`:
// cells of a region, at most; `channels` of a block, a multiple of CHUNK. Grid: tiles, channels, images.
template <typename T, int LANES, int GROUPS>
__global__ void __launch_bounds__(256, 2) lau_forward_tiled(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, T* __restrict__ output, int images, int C, int h, int w,
    int kh, int kw, Acc<T> rkh, Acc<T> rkw, Divisor by_kh, Divisor by_kw,
    int columns, int rows, int across, Divisor by_columns, Divisor by_across, int capacity, int channels) {
    using A = Acc<T>;
    constexpr int VEC = 16 / sizeof(T), PIXELS = VEC < 4 ? VEC : 4, CHUNK = LANES * VEC;
    __shared__ Box box;
    LAU_DYNAMIC_SHARED(T, region);  // capacity * CHUNK, then the arrays of the tile's pixels, then where its cells are
    const int threads = blockDim.x, held = GROUPS * (threads / LANES) * PIXELS;
    Vec<A, 4>* const weights = reinterpret_cast<Vec<A, 4>*>(region + capacity * CHUNK);
    int* const cells = reinterpret_cast<int*>(weights + held);
    int* const places = cells + held;
    const int hw = h * w, W = w * kw, H = h * kh, HW = H * W, warp = threadIdx.x / 32;
    const int tile_row = quotient(blockIdx.x, by_across), X0 = (blockIdx.x - tile_row * across) * columns * PIXELS, Y0 = tile_row * rows;
    const int first = blockIdx.y * channels, last = min(C, first + channels);
    for (int image = blockIdx.z; image < images; image += gridDim.z) {
        if (threadIdx.x == 0) box.clear();
        __syncthreads();
        int top = 1 << 29, left = 1 << 29, bottom = 0, right = 0;
        for (int p = threadIdx.x; p < held; p += threads) {
            const int group = p / PIXELS, row = quotient(group, by_columns);
            const int Y = min(Y0 + row, H - 1), X = min(X0 + (group - row * columns) * PIXELS + p % PIXELS, W - 1);
            if (row >= rows) break;
            const int i = quotient(Y, by_kh), j = quotient(X, by_kw);
            Position<A> at = {base_position<A>(i, Y - i * kh, kh, rkh), base_position<A>(j, X - j * kw, kw, rkw)};
            if (offset != nullptr) {
                const A* d = offset + (size_t)image * 2 * HW + Y * W + X;
                at.y += d[0];
                at.x += d[HW];
            }
            Axis<A> y = locate_pair(at.y, h), x = locate_pair(at.x, w);
            if (at.y != at.y) y.cell = min(i, h - 2);  // NaN whatever the cell: one that does not widen the box
            if (at.x != at.x) x.cell = min(j, w - 2);
            const Weights<A> taps = tap_weights(y.t, x.t);
            weights[p] = {taps.w00, taps.w01, taps.w10, taps.w11};
            cells[p] = y.cell << 16 | x.cell;
            top = min(top, y.cell), left = min(left, x.cell), bottom = max(bottom, y.cell), right = max(right, x.cell);
        }
        box.include(top, left, bottom, right);
        __syncthreads();
        top = -box.most[0], left = -box.most[1];
        const int height = box.most[2] - top + 2, width = box.most[3] - left + 2, size = height * width;
        const bool fits = size <= capacity;
        const int own = threadIdx.x % LANES, below_first = width * CHUNK * (int)sizeof(T);
        Vec<A, 4> weight[GROUPS][PIXELS];
        int at[GROUPS][PIXELS], pixel[GROUPS];
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            const int group = threadIdx.x / LANES + g * (threads / LANES), row = quotient(group, by_columns);
            const int Y = Y0 + row, X = X0 + (group - row * columns) * PIXELS;
            pixel[g] = row < rows && Y < H && X < W ? Y * W + X : -1;
#pragma unroll
            for (int i = 0; i < PIXELS; ++i) {
                if (pixel[g] < 0) continue;
                const int cell = cells[group * PIXELS + i], y = cell >> 16, x = cell & 0xffff;
                weight[g][i] = weights[group * PIXELS + i];
                at[g][i] = fits ? (((y - top) * width + x - left) * LANES + own) * 16 : y * w + x;
            }
        }
        if (fits)
            for (int cell = threadIdx.x; cell < size; cell += threads) {
                const int y = cell / width;
                places[cell] = (top + y) * w + left + cell - y * width;
            }
        __syncthreads();
        const T* u = input + ((size_t)image * C + first) * hw;
        T* v = output + ((size_t)image * C + first + own * VEC) * HW;
        for (int left_over = last - first; left_over > 0; left_over -= CHUNK, u += CHUNK * hw, v += (size_t)CHUNK * HW) {
            const int valid = left_over - own * VEC;
            if (!fits) {
                for (int j = 0; j < VEC && j < valid; ++j) {
                    const T* plane = u + (own * VEC + j) * hw;
#pragma unroll
                    for (int g = 0; g < GROUPS; ++g) {
                        if (pixel[g] < 0) continue;
                        Wide<A, PIXELS> out;
#pragma unroll
                        for (int i = 0; i < PIXELS; ++i) {
                            const T *above = plane + at[g][i], *below = above + w;
                            const Vec<A, 4>& k = weight[g][i];
                            out.v[i] = blend<A>({k.v[0], k.v[1], k.v[2], k.v[3]}, widen(above[0]), widen(above[1]), widen(below[0]), widen(below[1]));
                        }
                        stream<PIXELS>(v + (size_t)j * HW + pixel[g], narrow_all<T>(out));
                    }
                }
                continue;
            }
            for (int cell = threadIdx.x; cell < size; cell += threads) {
                const T* from = u + places[cell];
                T* to = region + cell * CHUNK;
#pragma unroll 1
                for (int c = 0; c < CHUNK; c += VEC, to += VEC) {
                    Vec<T, VEC> read;
#pragma unroll
                    for (int j = 0; j < VEC; ++j, from += hw)
                        if (c + j < left_over) read.v[j] = *from;
                    put<VEC>(to, read);
                }
            }
            __syncthreads();
#pragma unroll
            for (int g = 0; g < GROUPS; ++g) {
                if (pixel[g] < 0 || valid <= 0) continue;
                Wide<A, VEC> values[PIXELS];
#pragma unroll
                for (int i = 0; i < PIXELS; ++i) {
                    const T* above = reinterpret_cast<const T*>(reinterpret_cast<const char*>(region) + at[g][i]);
                    const T* below = reinterpret_cast<const T*>(reinterpret_cast<const char*>(region) + below_first + at[g][i]);
                    const Wide<A, VEC> v00 = widen_all(load<VEC>(above)), v01 = widen_all(load<VEC>(above + CHUNK));
                    const Wide<A, VEC> v10 = widen_all(load<VEC>(below)), v11 = widen_all(load<VEC>(below + CHUNK));
                    const Vec<A, 4>& k = weight[g][i];
#pragma unroll
                    for (int j = 0; j < VEC; ++j)
                        values[i].v[j] = blend<A>({k.v[0], k.v[1], k.v[2], k.v[3]}, v00.v[j], v01.v[j], v10.v[j], v11.v[j]);
                }
                T* plane = v + pixel[g];
#pragma unroll
                for (int j = 0; j < VEC; ++j, plane += HW) {
                    Wide<A, PIXELS> out;
#pragma unroll
                    for (int i = 0; i < PIXELS; ++i) out.v[i] = values[i].v[j];
                    if (j < valid) stream<PIXELS>(plane, narrow_all<T>(out));
                }
            }
            __syncthreads();
        }
    }
}

// NHWC with `stride` channels per pixel: those behind the first C are 0. Rows of C channels may begin anywhere, these begin
// at multiples of a vector. Grid: vectors of an image, images. `by_vectors` divides by the vectors of a pixel.
template <typename T, int VEC>
__global__ void __launch_bounds__(256) pad_channels(
    const T* __restrict__ input, T* __restrict__ padded, int images, int C, int stride, int hw, Divisor by_vectors) {
    const int per_pixel = stride / VEC, index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= hw * per_pixel) return;
    const int pixel = quotient(index, by_vectors), c = (index - pixel * per_pixel) * VEC;
    for (int image = blockIdx.y; image < images; image += gridDim.y) {
        const T* u = input + ((size_t)image * hw + pixel) * C + c;
        Vec<T, VEC> out = {};
#pragma unroll
        for (int j = 0; j < VEC; ++j)
            if (c + j < C) out.v[j] = u[j];
        store<VEC>(padded + ((size_t)image * hw + pixel) * stride + c, out);
    }
}

// The first `valid` values of a vector, of 2 bytes each, by words; SHIFTED: behind the first one. The second half of the last
// word may lie behind them: it belongs to the next row, which is written later.
template <bool SHIFTED, typename T, int VEC> __device__ __forceinline__ void store_words(T* p, const Vec<T, VEC>& v, int valid) {
    if (SHIFTED && valid > 0) p[0] = v.v[0];
#pragma unroll
    for (int j = SHIFTED; j + 1 < VEC; j += 2)
        if (j < valid) put<2>(p + j, Vec<T, 2>{v.v[j], v.v[j + 1]});
    if (SHIFTED && VEC - 1 < valid) p[VEC - 1] = v.v[VEC - 1];
}

// What each lane of a warp finds out about one of 32 pixels, for all of them: the weights of its taps, and where the first of
// them is, in values from the image's first.
template <typename A> struct Taps {
    Vec<A, 4> weights[32];
    unsigned corners[32];

    __device__ __forceinline__ void set(int own, const Position<A>& p, int h, int w, int stride) {
        const Axis<A> y = locate_pair(p.y, h), x = locate_pair(p.x, w);
        const Weights<A> taps = tap_weights(y.t, x.t);
        weights[own] = {taps.w00, taps.w01, taps.w10, taps.w11};
        corners[own] = (unsigned)((y.cell * w + x.cell) * stride);
    }
};

// The four corners of a cell.
template <typename T> struct Corners {
    const T *u00, *u01, *u10, *u11;

    // Of the first cell. All cells have neighbours at the same distances: see `locate_pair`.
    __device__ __forceinline__ Corners(const T* u, int h, int w, int stride) {
        const int right = w > 1 ? stride : 0, below = h > 1 ? w * stride : 0;
        u00 = kept(u), u01 = kept(u + right), u10 = kept(u + below), u11 = kept(u + below + right);
    }
    __device__ __forceinline__ Corners(const Corners& first, unsigned corner)
        : u00(first.u00 + corner), u01(first.u01 + corner), u10(first.u10 + corner), u11(first.u11 + corner) {}
};

// VEC channels of the four taps of a sample.
template <typename T, int VEC> struct Tapped {
    Vec<T, VEC> v00, v01, v10, v11;

    // Behind the first `c` channels.
    __device__ __forceinline__ void read(const Corners<T>& at, int c) {
        v00 = fetch<VEC>(at.u00 + c), v01 = fetch<VEC>(at.u01 + c), v10 = fetch<VEC>(at.u10 + c), v11 = fetch<VEC>(at.u11 + c);
    }
    __device__ __forceinline__ Vec<T, VEC> blended(const Vec<Acc<T>, 4>& weights) const {
        using A = Acc<T>;
        const Weights<A> weight = {weights.v[0], weights.v[1], weights.v[2], weights.v[3]};
        const Wide<A, VEC> a = widen_all(v00), b = widen_all(v01), d = widen_all(v10), e = widen_all(v11);
        Wide<A, VEC> out;
#pragma unroll
        for (int j = 0; j < VEC; ++j) out.v[j] = blend<A>(weight, a.v[j], b.v[j], d.v[j], e.v[j]);
        return narrow_all<T>(out);
    }
};

// NHWC, M = 1. A warp computes 32 pixels: each lane the taps of one, then groups of LANES lanes one pixel after another, each
// lane VECTORS vectors of VEC channels. All lanes have all of these but the last, if VECTORS > 1.
template <typename T, int VEC, int LANES, int VECTORS>
__global__ void __launch_bounds__(256, 2) lau_forward_nhwc(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, T* __restrict__ output, int images, int C,
    int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, Divisor by_W, Divisor by_kh, Divisor by_kw) {
    using A = Acc<T>;
    constexpr int GROUPS = 32 / LANES, STEP = LANES * VEC, TOGETHER = 16 / (VEC * sizeof(T));  // vectors that are read at a time
    __shared__ Taps<A> shared[8];
    const int hw = h * w, W = w * kw, HW = hw * kh * kw;
    const int own = threadIdx.x % 32, warp = threadIdx.x / 32, lane = own % LANES, group = own / LANES;
    const int begin = blockIdx.x * blockDim.x + warp * 32, pixels = min(32, HW - begin);
    if (pixels <= 0) return;
    Taps<A>& taps = shared[warp];
    for (int image = blockIdx.y; image < images; image += gridDim.y) {
        const int pixel = min(begin + own, HW - 1);
        taps.set(own, position_of(offset, image, pixel, HW, W, kh, kw, rkh, rkw, {by_W, by_kh, by_kw}), h, w, C);
        __syncwarp();
        for (int c = lane * VEC; c < C; c += STEP * VECTORS) {
            const Corners<T> first(input + (size_t)image * hw * C + c, h, w, C);
            T* v = output + ((size_t)image * HW + begin + group) * C + c;
            for (int i = group; i < pixels; i += GROUPS, v += GROUPS * C) {
                const Vec<A, 4> weights = taps.weights[i];
                const Corners<T> at(first, taps.corners[i]);
                const bool whole = c + (VECTORS - 1) * STEP < C;
#pragma unroll
                for (int from = 0; from < VECTORS; from += TOGETHER) {
                    if (TOGETHER == 1 && from == VECTORS - 1 && !whole) continue;
                    Tapped<T, VEC> tapped[TOGETHER];
#pragma unroll
                    for (int q = from; q < from + TOGETHER && q < VECTORS; ++q)
                        if (q < VECTORS - 1 || whole) tapped[q - from].read(at, q * STEP);
#pragma unroll
                    for (int q = from; q < from + TOGETHER && q < VECTORS; ++q) {
                        const Vec<T, VEC> out = tapped[q - from].blended(weights);
                        if (q < VECTORS - 1 || whole) stream<VEC>(v + q * STEP, out);
                    }
                }
            }
        }
        __syncwarp();  // before the next image's taps
    }
}

// The same from an input with `stride` channels per pixel, where rows of C channels do not begin at multiples of a vector:
// they are put together in shared memory, two per group, and stored as whole vectors from there. C is at most what a group
// processes at a time; ODD is whether C is.
template <typename T, int VEC, int LANES, int VECTORS, bool ODD>
__global__ void __launch_bounds__(256, 2) lau_forward_padded(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, T* __restrict__ output, int images, int C, int stride,
    int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, Divisor by_W, Divisor by_kh, Divisor by_kw) {
    using A = Acc<T>;
    constexpr int GROUPS = 32 / LANES, STEP = LANES * VEC, ROWS = 2 * GROUPS;
    __shared__ Taps<A> shared[8];
    LAU_DYNAMIC_SHARED(T, shared_rows);
    const int hw = h * w, W = w * kw, HW = hw * kh * kw;
    const int own = threadIdx.x % 32, warp = threadIdx.x / 32, c = own % LANES * VEC, group = own / LANES;
    const int begin = blockIdx.x * blockDim.x + warp * 32, pixels = min(32, HW - begin), tail = C - c - (VECTORS - 1) * STEP;
    if (pixels <= 0) return;
    Taps<A>& taps = shared[warp];
    T* rows = shared_rows + warp * ROWS * C;
    T* row = rows + 2 * group * C + c;
    for (int image = blockIdx.y; image < images; image += gridDim.y) {
        const int pixel = min(begin + own, HW - 1);
        taps.set(own, position_of(offset, image, pixel, HW, W, kh, kw, rkh, rkw, {by_W, by_kh, by_kw}), h, w, stride);
        __syncwarp();
        const Corners<T> first(input + (size_t)image * hw * stride + c, h, w, stride);
        T* v = output + ((size_t)image * HW + begin) * C;
        for (int i = 0; i < pixels; i += ROWS, v += ROWS * C) {
#pragma unroll
            for (int second = 0; second < 2; ++second) {
                const Vec<A, 4> weights = taps.weights[i + 2 * group + second];
                const Corners<T> at(first, taps.corners[i + 2 * group + second]);
#pragma unroll
                for (int q = 0; q < VECTORS; ++q) {
                    if (q == VECTORS - 1 && tail <= 0) continue;
                    Tapped<T, VEC> tapped;
                    tapped.read(at, q * STEP);
                    const Vec<T, VEC> out = tapped.blended(weights);
                    T* p = row + second * C + q * STEP;
                    const int valid = q < VECTORS - 1 ? VEC : tail;
                    if (ODD && second)
                        store_words<true>(p, out, valid);
                    else
                        store_words<false>(p, out, valid);
                }
                __syncwarp();
            }
            const int values = min(ROWS, pixels - i) * C;
            if (values % VEC == 0 && HW * C % VEC == 0) {
#pragma unroll 1
                for (int j = own * VEC; j < values; j += 32 * VEC) stream<VEC>(v + j, load<VEC>(rows + j));
            } else {
#pragma unroll 1
                for (int j = own; j < values; j += 32) v[j] = rows[j];
            }
            __syncwarp();
        }
    }
}
