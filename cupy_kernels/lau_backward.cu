// LaU, backward, as a gather: every sample (a pixel of a map) reads one cell of the input, so samples sorted by cell can be
// summed in registers. In deterministic mode no float is added atomically, and the order within a cell is that of a stable
// sort; otherwise samples take their places as they come.
//
//   count_cells    the number of samples per cell
//   rank_sorted    each sample's rank within its cell by a stable sort, if requested
//   list_cells     the start of each cell's list, and its division into chunks of at most `capacity` samples
//   scatter_cells  the lists: per sample its pixel, its fractions and the derivatives that exist
//   gather_*       per chunk: its part of the gradients of the cell's four corners, and the offset gradients of its samples
//   gather_tiled   all of this for tiles of an image in NCHW order, in shared memory and without lists in memory
//   combine        per input value: the sum of the parts of the cells, up to four, of which it is a corner
//   integer_rule   overwrites offset gradients at integers by the released code's rule, if requested
//
// C is the number of channels of a map. Maps first_map to first_map + maps - 1 are processed; input, grad and grad_input
// start at the first of them, offset and grad_offset at map 0.
#include "cells.cuh"
#include "tiles.cuh"

// Blocks along y are maps. `count` must be 0. `key` (KEY: for a sort) is, per sample, the cell; maps * h * w where the offset is
// NaN.
template <typename A, bool KEY>
__global__ void __launch_bounds__(256) count_cells(
    const A* __restrict__ offset, int* __restrict__ key, int* __restrict__ count,
    int first_map, int M, Divisor by_M, int h, int w, int kh, int kw, A rkh, A rkw,
    Divisor by_W, Divisor by_kh, Divisor by_kw) {
    const int W = w * kw, HW = h * kh * W, map = blockIdx.y, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    int cell = -1;
    if (pixel < HW) {
        const size_t plane = plane_of(first_map + map, M, HW, by_M) + pixel;
        const Position<A> base = base_of(pixel, W, kh, kw, rkh, rkw, by_W, by_kh, by_kw);
        cell = cell_of(moved(base, offset == nullptr ? nullptr : offset + plane, (size_t)M * HW), h, w);
        if (KEY) key[map * HW + pixel] = cell < 0 ? (int)gridDim.y * h * w : map * h * w + cell;
    }
    const unsigned peers = __match_any_sync(ALL_LANES, cell);
    if ((threadIdx.x & 31) == __ffs((int)peers) - 1 && cell >= 0) atomicAdd(count + map * h * w + cell, __popc(peers));
}

// The ranks by a stable sort by cell; `before` is the inclusive prefix sum of `count`.
__global__ void __launch_bounds__(256) rank_sorted(
    const int* __restrict__ sorted_cell, const long long* __restrict__ permutation, const int* __restrict__ count,
    const int* __restrict__ before, int* __restrict__ rank, int samples, int cells) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= samples) return;
    const int cell = sorted_cell[i];
    rank[permutation[i]] = cell < cells ? i - (before[cell] - count[cell]) : -1;
}

__device__ __forceinline__ int chunks_of(int length, int capacity) { return (length + capacity - 1) / capacity; }

// The sum over the block's lower threads; `total` is set to the sum over all 256.
__device__ __forceinline__ int exclusive_sum(int v, int& total, int* sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int inclusive = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int lower = __shfl_up_sync(ALL_LANES, inclusive, d);
        if (lane >= d) inclusive += lower;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    int before = 0;
    total = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (i < warp) before += sums[i];
        total += sums[i];
    }
    __syncthreads();  // the next call may overwrite `sums`
    return before + inclusive - v;
}

// Blocks of 256 cells; `totals` (entries, chunks) must be 0. The lists of a block are consecutive. Where they start depends
// on the order in which the blocks run; nothing else does. The chunks of a block are shared out among its threads, whatever
// cell they are of: with all samples in one cell, each thread writes a 256th of the chunks. `first_chunk` may be null.
__global__ void __launch_bounds__(256) list_cells(
    const int* __restrict__ count, int* __restrict__ totals, int* __restrict__ start, int* __restrict__ first_chunk,
    Chunk* __restrict__ chunks, int cells, int capacity) {
    __shared__ int sums[8];
    __shared__ int base[2];
    __shared__ int firsts[256], begins[256], lengths[256];
    const int thread = threadIdx.x, block = blockIdx.x * 256, cell = block + thread, length = cell < cells ? count[cell] : 0;
    int block_length, block_parts;
    const int begin = exclusive_sum(length, block_length, sums);
    const int first = exclusive_sum(chunks_of(length, capacity), block_parts, sums);
    firsts[thread] = first;
    begins[thread] = begin;
    lengths[thread] = length;
    if (thread == 0) {
        base[0] = atomicAdd(totals, block_length);
        base[1] = atomicAdd(totals + 1, block_parts);
    }
    __syncthreads();
    if (cell < cells) {
        start[cell] = base[0] + begin;
        if (first_chunk != nullptr) first_chunk[cell] = base[1] + first;
    }
    for (int i = thread; i < block_parts; i += 256) {
        int at = 0;  // the last cell whose chunks begin at i or before: those that have none begin where the next one's do
#pragma unroll
        for (int d = 128; d > 0; d /= 2)
            if (firsts[at + d] <= i) at += d;
        // The lengths of a cell's chunks differ by at most one. A cell that has chunk i has at least one.
        const int parts = max(chunks_of(lengths[at], capacity), 1), part = i - firsts[at];
        const int least = lengths[at] / parts, longer = lengths[at] - least * parts;
        chunks[base[1] + i] = {block + at, base[0] + begins[at] + part * least + min(part, longer), least + (part < longer)};
    }
}

// Writes the lists, and the offset gradient (may be null) of the samples that are in no list: those of NaN offsets. Blocks
// along y are maps. With a null `rank` the samples take their places by counting `start` up.
template <typename A>
__global__ void __launch_bounds__(256) scatter_cells(
    const A* __restrict__ offset, const int* __restrict__ rank, int* __restrict__ start,
    Entry<A>* __restrict__ entries, A* __restrict__ grad_offset,
    int first_map, int M, Divisor by_M, int h, int w, int kh, int kw, A rkh, A rkw,
    Divisor by_W, Divisor by_kh, Divisor by_kw) {
    const int W = w * kw, HW = h * kh * W, map = blockIdx.y, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    const size_t plane = plane_of(first_map + map, M, HW, by_M) + pixel;
    Position<A> p = {(A)0, (A)0};
    int cell = -1;
    if (pixel < HW) {
        p = base_of(pixel, W, kh, kw, rkh, rkw, by_W, by_kh, by_kw);
        p = moved(p, offset == nullptr ? nullptr : offset + plane, (size_t)M * HW);
        cell = cell_of(p, h, w);
    }
    int* const starts = start + map * h * w;
    int place;
    if (rank == nullptr) place = take_places(starts, cell);
    else place = cell < 0 ? 0 : starts[cell] + rank[map * HW + pixel];
    if (cell >= 0) {
        const int slopes = (has_slope(p.y, h) ? SLOPE_Y : 0) | (has_slope(p.x, w) ? SLOPE_X : 0);
        entries[place] = {locate(p.y, h).t, locate(p.x, w).t, pixel, slopes};
    } else if (pixel < HW && grad_offset != nullptr) {
        grad_offset[plane] = grad_offset[plane + (size_t)M * HW] = (A)0;
    }
}

// What the lanes of a warp read about each of its samples.
template <typename A> struct alignas(16) Sample { A w00, w01, w10, w11, ty, tx; unsigned first, unused; };

// The sums over groups of LANES lanes of N values, a power of two; lane k LANES / N and those behind it return number k.
template <int LANES, int N, typename A> __device__ __forceinline__ A group_sums(A (&v)[N], int lane) {
    int half = LANES / 2;
#pragma unroll
    for (int kept = N / 2; kept > 0; kept /= 2, half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (int k = 0; k < kept; ++k)
            v[k] = (upper ? v[k + kept] : v[k]) + __shfl_xor_sync(ALL_LANES, upper ? v[k] : v[k + kept], half);
    }
#pragma unroll
    for (; half > 0; half /= 2) v[0] += __shfl_xor_sync(ALL_LANES, v[0], half);
    return v[0];
}

// NHWC, M = 1. One warp per chunk of at most 32 samples, which the groups of lanes share out; a lane holds VECTORS vectors
// of VEC channels (all but the last lanes' last one exist): the cell's slopes, and the sums for its four corners. The sums are
// written to `parts`, for `combine`, or added to `sums`, which is as the input but of the type of the arithmetic; both may be
// null.
template <typename T, int VEC, int LANES, int VECTORS>
__global__ void __launch_bounds__(256, 2) gather_nhwc(
    const T* __restrict__ grad, const T* __restrict__ input, const Chunk* __restrict__ chunks, const int* __restrict__ totals,
    const Entry<Acc<T>>* __restrict__ entries, Acc<T>* __restrict__ parts, Acc<T>* __restrict__ sums, Acc<T>* __restrict__ grad_offset,
    int first_map, int C, int h, int w, int HW, Divisor by_hw, Divisor by_w) {
    using A = Acc<T>;
    constexpr int GROUPS = 32 / LANES, STEP = LANES * VEC, AHEAD = LANES / 8;  // samples of a group that are read together
    __shared__ Sample<A> shared[256];
    const int index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= totals[1]) return;  // the chunks after these were never written
    const Chunk chunk = chunks[index];
    const int lane = threadIdx.x % LANES, group = threadIdx.x % 32 / LANES;
    const int map = quotient(chunk.cell, by_hw), cell = chunk.cell - map * h * w, y = quotient(cell, by_w), x = cell - y * w;
    const int to_right = x < w - 1 ? C : 0, to_below = y < h - 1 ? w * C : 0;
    const T* g = grad + (size_t)map * HW * C;

    // The sample of this lane: consecutive samples go to different groups.
    const int lane_sample = lane * GROUPS + group;
    Entry<A> entry = {(A)0, (A)0, 0, 0};
    if (lane_sample < chunk.length) entry = entries[chunk.begin + lane_sample];
    Sample<A>* const samples = shared + threadIdx.x / LANES * LANES;
    const Weights<A> own = tap_weights(entry.ty, entry.tx);
    samples[lane] = {own.w00, own.w01, own.w10, own.w11, entry.ty, entry.tx, (unsigned)(entry.pixel * C), 0};
    __syncwarp();
    const int of_group = (chunk.length - group + GROUPS - 1) / GROUPS;  // samples
    A grad_y = 0, grad_x = 0;

    for (int c0 = lane * VEC; c0 < C + lane * VEC; c0 += STEP * VECTORS) {
        const T* const u00 = kept(input + (size_t)chunk.cell * C + c0);
        const T *const u01 = kept(u00 + to_right), *const u10 = kept(u00 + to_below), *const u11 = kept(u10 + to_right);
        const bool whole = c0 + (VECTORS - 1) * STEP < C;  // all lanes have all vectors but the last
        Slopes<A> slopes[VECTORS][VEC];
        A s00[VECTORS][VEC], s01[VECTORS][VEC], s10[VECTORS][VEC], s11[VECTORS][VEC];
#pragma unroll
        for (int q = 0; q < VECTORS; ++q) {
            const bool has = q < VECTORS - 1 || whole;
            const Wide<A, VEC> wa = widen_all(fetch_if<VEC>(has, u00 + q * STEP)), wb = widen_all(fetch_if<VEC>(has, u01 + q * STEP));
            const Wide<A, VEC> wd = widen_all(fetch_if<VEC>(has, u10 + q * STEP)), we = widen_all(fetch_if<VEC>(has, u11 + q * STEP));
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                slopes[q][j] = slopes_of<A>(wa.v[j], wb.v[j], wd.v[j], we.v[j]);
                s00[q][j] = s01[q][j] = s10[q][j] = s11[q][j] = (A)0;
            }
        }
        const T* from = kept(g + c0);
        for (int i = 0; i * GROUPS < chunk.length; i += AHEAD) {
            Vec<T, VEC> v[AHEAD][VECTORS];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                const T* p = from + samples[i + k].first;
#pragma unroll
                for (int q = 0; q < VECTORS; ++q) v[k][q] = fetch_if<VEC>(i + k < of_group && (q < VECTORS - 1 || whole), p + q * STEP);
            }
            A along[2 * AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                const Sample<A> sample = samples[i + k];
                A down = 0, right = 0, twist = 0;
#pragma unroll
                for (int q = 0; q < VECTORS; ++q) {
                    const Wide<A, VEC> gv = widen_all(v[k][q]);
#pragma unroll
                    for (int j = 0; j < VEC; ++j) {
                        s00[q][j] = mad(sample.w00, gv.v[j], s00[q][j]);
                        s01[q][j] = mad(sample.w01, gv.v[j], s01[q][j]);
                        s10[q][j] = mad(sample.w10, gv.v[j], s10[q][j]);
                        s11[q][j] = mad(sample.w11, gv.v[j], s11[q][j]);
                        down = mad(slopes[q][j].down, gv.v[j], down);
                        right = mad(slopes[q][j].right, gv.v[j], right);
                        twist = mad(slopes[q][j].twist, gv.v[j], twist);
                    }
                }
                along[k] = mad(sample.tx, twist, down);
                along[AHEAD + k] = mad(sample.ty, twist, right);
            }
            // Every fourth lane holds another sum: along y of all samples, then along x.
            const A sum = group_sums<LANES>(along, lane);
            const int at = lane % AHEAD * 4;
            const A sum_y = __shfl_sync(ALL_LANES, sum, at, LANES), sum_x = __shfl_sync(ALL_LANES, sum, at + LANES / 2, LANES);
            if (lane / AHEAD * AHEAD == i) {
                grad_y += sum_y;
                grad_x += sum_x;
            }
        }
        if (parts == nullptr && sums == nullptr) continue;
        Vec<A, VEC> corners[4][VECTORS];
#pragma unroll
        for (int q = 0; q < VECTORS; ++q) {
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                corners[0][q].v[j] = across_groups<LANES>(s00[q][j]);
                corners[1][q].v[j] = across_groups<LANES>(s01[q][j]);
                corners[2][q].v[j] = across_groups<LANES>(s10[q][j]);
                corners[3][q].v[j] = across_groups<LANES>(s11[q][j]);
            }
        }
        if (group > 0) continue;
        if (parts != nullptr) {
            A* out = parts + (size_t)index * 4 * C + c0;
#pragma unroll
            for (int corner = 0; corner < 4; ++corner, out += C)
#pragma unroll
                for (int q = 0; q < VECTORS; ++q)
                    if (q < VECTORS - 1 || whole) store<VEC>(out + q * STEP, corners[corner][q]);
            continue;
        }
        A* const node = sums + (size_t)chunk.cell * C + c0;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            if ((corner % 2 && to_right == 0) || (corner / 2 && to_below == 0)) continue;  // no such corner, and no weight
            A* const out = node + (corner % 2 ? to_right : 0) + (corner / 2 ? to_below : 0);
#pragma unroll
            for (int q = 0; q < VECTORS; ++q)
                if (q < VECTORS - 1 || whole) add_to<VEC>(out + q * STEP, corners[corner][q]);
        }
    }
    if (grad_offset == nullptr || lane_sample >= chunk.length) return;
    A* rows = grad_offset + (size_t)(first_map + map) * 2 * HW + entry.pixel;
    rows[0] = entry.slopes & SLOPE_Y ? grad_y : (A)0;
    rows[HW] = entry.slopes & SLOPE_X ? grad_x : (A)0;
}

// Of a cell of a region: its number or its place in the image, whether it has neighbours, and the slopes of a pixel in it.
constexpr int RIGHT = 1 << 30, BELOW = 1 << 29, SLOPES = 16, CELL = 0xffff, PLACE = BELOW - 1;

// NCHW, M = 1, maps of more than one row and column, W a multiple of PIXELS. A block has a tile (see tiles.cuh) and processes
// CHUNK channels at a time: LANES lanes share PIXELS neighbouring pixels, VEC channels each, and sum what their offsets need;
// then LANES lanes share a cell, of which the pixels are listed, and sum what its corners need. `sums` is as the input, but of
// the type of the arithmetic; it and `grad_offset` may be null. Grid: tiles, 1, images.
template <typename T, int LANES>
__global__ void __launch_bounds__(256, 2) gather_tiled(
    const T* __restrict__ grad, const T* __restrict__ input, const Acc<T>* __restrict__ offset,
    Acc<T>* __restrict__ sums, Acc<T>* __restrict__ grad_offset, int images, int C, int h, int w,
    int kh, int kw, Acc<T> rkh, Acc<T> rkw, Divisor by_kh, Divisor by_kw,
    int columns, int rows, int across, Divisor by_columns, Divisor by_across, int capacity) {
    using A = Acc<T>;
    constexpr int VEC = 16 / sizeof(T), PIXELS = VEC < 4 ? VEC : 4, CHUNK = LANES * VEC, WIDE = 16 / sizeof(A);
    __shared__ Box box;
    LAU_DYNAMIC_SHARED(A, nodes);  // capacity * CHUNK, then the other arrays
    const int threads = blockDim.x, groups = threads / LANES, held = groups * PIXELS;
    T* const region = reinterpret_cast<T*>(nodes + capacity * CHUNK);
    T* const gradients = region + capacity * CHUNK;
    Vec<A, 4>* const weights = reinterpret_cast<Vec<A, 4>*>(gradients + held * CHUNK);
    int* const places = reinterpret_cast<int*>(weights + held);  // of the region's cells in the image
    int* const counts = places + capacity;  // of pixels per cell, then where they end in `order`
    int* const cells = counts + capacity;
    unsigned short *const ranks = reinterpret_cast<unsigned short*>(cells + held), *const order = ranks + held, *const turns = order + held;
    const int hw = h * w, W = w * kw, H = h * kh, HW = H * W, own = threadIdx.x % LANES, group = threadIdx.x / LANES;
    const int tile_row = quotient(blockIdx.x, by_across), X0 = (blockIdx.x - tile_row * across) * columns * PIXELS, Y0 = tile_row * rows;
    const int row = quotient(group, by_columns), Y = Y0 + row, X = X0 + (group - row * columns) * PIXELS;
    const int pixel = row < rows && Y < H && X < W ? Y * W + X : -1;
    // Pixel i of group g is at i * groups + g, so that neighbouring lanes write to neighbouring banks.
    int part = 0;
#pragma unroll
    for (int i = 1; i < LANES; ++i) part += threadIdx.x >= i * groups ? 1 : 0;
    const int of = threadIdx.x - part * groups, of_row = quotient(of, by_columns);
    const int of_y = Y0 + of_row, of_x = X0 + (of - of_row * columns) * PIXELS + part;
    for (int image = blockIdx.z; image < images; image += gridDim.z) {
        if (threadIdx.x == 0) box.clear();
        for (int i = threadIdx.x; i < capacity; i += threads) counts[i] = 0;
        __syncthreads();
        int top = 1 << 29, left = 1 << 29, bottom = 0, right = 0;
        const int i_y = quotient(min(of_y, H - 1), by_kh);
        const A base_y = base_position<A>(i_y, of_y - i_y * kh, kh, rkh);
        for (int p = threadIdx.x, x_of = of_x; p < held; p += threads, x_of += LANES) {
            cells[p] = -1;
            if (of_row >= rows || of_y >= H || x_of >= W) continue;
            const int j = quotient(x_of, by_kw);
            Position<A> at = {base_y, base_position<A>(j, x_of - j * kw, kw, rkw)};
            if (offset != nullptr) {
                const A* d = offset + (size_t)image * 2 * HW + of_y * W + x_of;
                at.y += d[0];
                at.x += d[HW];
            }
            if (at.y != at.y || at.x != at.x) continue;
            const Axis<A> y = locate(at.y, h), x = locate(at.x, w);
            const Weights<A> taps = tap_weights(y.t, x.t);
            weights[p] = {taps.w00, taps.w01, taps.w10, taps.w11};
            cells[p] = y.cell << 16 | x.cell;
            ranks[p] = (has_slope(at.y, h) ? SLOPE_Y : 0) | (has_slope(at.x, w) ? SLOPE_X : 0);
            top = min(top, y.cell), left = min(left, x.cell), bottom = max(bottom, y.cell), right = max(right, x.cell);
        }
        box.include(top, left, bottom, right);
        __syncthreads();
        top = -box.most[0], left = -box.most[1];
        // With the neighbours of the last row and column, where they exist.
        const int height = min(box.most[2] + 1, h - 1) - top + 1, width = min(box.most[3] + 1, w - 1) - left + 1, size = max(height, 0) * width;
        const bool fits = size <= capacity;
        if (fits) {
            // The pixels listed by cell, in any order: each counts itself in, and the counts are added up.
            for (int p = threadIdx.x; p < held; p += threads)
                if (cells[p] >= 0) {
                    const int y = (cells[p] >> 16) - top, x = (cells[p] & 0xffff) - left, cell = y * width + x;
                    const int slopes = ranks[p];
                    ranks[p] = (unsigned short)atomicAdd(counts + cell, 1);
                    cells[p] = cell | slopes << SLOPES | (x < width - 1 ? RIGHT : 0) | (y < height - 1 ? BELOW : 0);
                }
            for (int cell = threadIdx.x; cell < size; cell += threads) {
                const int y = cell / width, x = cell - y * width;
                places[cell] = (top + y) * w + left + x | (x < width - 1 ? RIGHT : 0) | (y < height - 1 ? BELOW : 0);
            }
            __syncthreads();
            // The lanes of a warp take cells of nearly as many pixels: the fullest come first.
            for (int cell = threadIdx.x; cell < size; cell += threads) {
                const int count = counts[cell];
                int turn = 0;
                for (int other = 0; other < size; ++other) {
                    const int theirs = counts[other];
                    turn += theirs > count || (theirs == count && other < cell) ? 1 : 0;
                }
                turns[turn] = (unsigned short)cell;
            }
            __syncthreads();
            if (threadIdx.x < 32) {
                int before = 0;
#pragma unroll 1
                for (int first = 0; first < size; first += 32) {
                    const int cell = first + threadIdx.x, count = cell < size ? counts[cell] : 0;
                    int inclusive = count;
#pragma unroll
                    for (int d = 1; d < 32; d *= 2) {
                        const int lower = __shfl_up_sync(ALL_LANES, inclusive, d);
                        if (threadIdx.x >= d) inclusive += lower;
                    }
                    if (cell < size) counts[cell] = before + inclusive;
                    before += __shfl_sync(ALL_LANES, inclusive, 31);
                }
            }
            __syncthreads();
            for (int p = threadIdx.x; p < held; p += threads)
                if (cells[p] >= 0) {
                    const int cell = cells[p] & CELL;
                    order[(cell ? counts[cell - 1] : 0) + ranks[p]] = (unsigned short)p;
                }
            __syncthreads();
        }
        A down[PIXELS], along_x[PIXELS], twist[PIXELS];
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) down[i] = along_x[i] = twist[i] = (A)0;
        const T *u = input + (size_t)image * C * hw, *g = grad + ((size_t)image * C + own * VEC) * HW + pixel;
        A* out = sums + (size_t)image * C * hw;
        for (int remaining = C; remaining > 0; remaining -= CHUNK, u += CHUNK * hw, out += CHUNK * hw, g += (size_t)CHUNK * HW) {
            const int valid = pixel < 0 ? 0 : remaining - own * VEC;
            if (!fits) {
                for (int j = 0; j < VEC && j < valid; ++j) {
                    const T *plane = u + (own * VEC + j) * hw, *from = g + (size_t)j * HW;
#pragma unroll
                    for (int i = 0; i < PIXELS; ++i) {
                        const int p = i * groups + group, cell = cells[p];
                        if (cell < 0) continue;
                        const int y = cell >> 16, x = cell & 0xffff, at = y * w + x, far_x = x < w - 1 ? 1 : 0, far_y = y < h - 1 ? w : 0;
                        const Slopes<A> slopes = slopes_of<A>(widen(plane[at]), widen(plane[at + far_x]), widen(plane[at + far_y]), widen(plane[at + far_y + far_x]));
                        const A v = widen(from[i]);
                        down[i] = mad(slopes.down, v, down[i]);
                        along_x[i] = mad(slopes.right, v, along_x[i]);
                        twist[i] = mad(slopes.twist, v, twist[i]);
                        if (sums == nullptr) continue;
                        A* const node = out + (own * VEC + j) * hw + at;
                        atomicAdd(node, weights[p].v[0] * v);
                        if (far_x) atomicAdd(node + far_x, weights[p].v[1] * v);
                        if (far_y) atomicAdd(node + far_y, weights[p].v[2] * v);
                        if (far_x && far_y) atomicAdd(node + far_y + far_x, weights[p].v[3] * v);
                    }
                }
                continue;
            }
            Vec<T, PIXELS> v[VEC];
            const T* from = g;
#pragma unroll
            for (int j = 0; j < VEC; ++j, from += HW) v[j] = fetch_if<PIXELS>(j < valid, from);
            for (int cell = threadIdx.x; cell < size; cell += threads) {
                const T* at = u + (places[cell] & PLACE);
#pragma unroll
                for (int q = 0; q < LANES; ++q) {
                    Vec<T, VEC> read;
#pragma unroll
                    for (int j = 0; j < VEC; ++j, at += hw) read.v[j] = fetch_if<1>(q * VEC + j < remaining, at).v[0];
                    put<VEC>(region + cell * CHUNK + q * VEC, read);
                }
#pragma unroll
                for (int q = 0; q < CHUNK; q += WIDE) put<WIDE>(nodes + cell * CHUNK + q, Vec<A, WIDE>{});
            }
            __syncthreads();
            if (valid > 0) {
#pragma unroll
                for (int i = 0; i < PIXELS; ++i) {
                    const int p = i * groups + group, cell = cells[p];
                    Vec<T, VEC> transposed;
#pragma unroll
                    for (int j = 0; j < VEC; ++j) transposed.v[j] = v[j].v[i];
                    put<VEC>(gradients + p * CHUNK + own * VEC, transposed);
                    if (cell < 0) continue;
                    const Wide<A, VEC> gv = widen_all(transposed);
                    const T *above = region + (cell & CELL) * CHUNK + own * VEC, *below = above + (cell & BELOW ? width * CHUNK : 0);
                    const int far_x = cell & RIGHT ? CHUNK : 0;
                    const Wide<A, VEC> v00 = widen_all(load<VEC>(above)), v01 = widen_all(load<VEC>(above + far_x));
                    const Wide<A, VEC> v10 = widen_all(load<VEC>(below)), v11 = widen_all(load<VEC>(below + far_x));
#pragma unroll
                    for (int j = 0; j < VEC; ++j) {
                        const Slopes<A> slopes = slopes_of<A>(v00.v[j], v01.v[j], v10.v[j], v11.v[j]);
                        down[i] = mad(slopes.down, gv.v[j], down[i]);
                        along_x[i] = mad(slopes.right, gv.v[j], along_x[i]);
                        twist[i] = mad(slopes.twist, gv.v[j], twist[i]);
                    }
                }
            }
            __syncthreads();
            if (sums == nullptr) continue;
            for (int first = 0; first < size; first += groups) {
                const bool exists = first + group < size;
                const int cell = exists ? turns[first + group] : 0, place = places[cell];
                A s[4][VEC];
#pragma unroll
                for (int j = 0; j < VEC; ++j) s[0][j] = s[1][j] = s[2][j] = s[3][j] = (A)0;
                if (exists && own * VEC < remaining) {
                    const int end = counts[cell];
                    for (int at = cell ? counts[cell - 1] : 0; at < end; ++at) {
                        const int p = order[at];
                        const Vec<A, 4> weight = weights[p];
                        const Wide<A, VEC> gv = widen_all(load<VEC>(gradients + p * CHUNK + own * VEC));
#pragma unroll
                        for (int corner = 0; corner < 4; ++corner)
#pragma unroll
                            for (int j = 0; j < VEC; ++j) s[corner][j] = mad(weight.v[corner], gv.v[j], s[corner][j]);
                    }
                }
                // One corner after the other, so that no two cells add to one node at a time.
#pragma unroll
                for (int corner = 0; corner < 4; ++corner) {
                    const int needed = (corner % 2 ? RIGHT : 0) | (corner / 2 ? BELOW : 0);
                    if (exists && (place & needed) == needed) {
                        A* const node = nodes + (cell + corner / 2 * width + corner % 2) * CHUNK + own * VEC;
#pragma unroll
                        for (int q = 0; q < VEC; q += WIDE) {
                            Vec<A, WIDE> sum = load<WIDE>(node + q);
#pragma unroll
                            for (int j = 0; j < WIDE; ++j) sum.v[j] += s[corner][q + j];
                            put<WIDE>(node + q, sum);
                        }
                    }
                    __syncthreads();
                }
            }
            for (int cell = threadIdx.x; cell < size; cell += threads) {
                A* to = out + (places[cell] & PLACE);
#pragma unroll
                for (int q = 0; q < CHUNK; q += WIDE) {
                    const Vec<A, WIDE> sum = load<WIDE>(nodes + cell * CHUNK + q);
#pragma unroll
                    for (int j = 0; j < WIDE; ++j, to += hw)
                        if (q + j < remaining) atomicAdd(to, sum.v[j]);
                }
            }
            __syncthreads();
        }
        if (grad_offset != nullptr) {
            A* const along_y = grad_offset + (size_t)image * 2 * HW + pixel;
#pragma unroll
            for (int i = 0; i < PIXELS; ++i) {
                const int p = i * groups + group, cell = cells[p];
                const A y = group_sum<LANES>(down[i]), x = group_sum<LANES>(along_x[i]), both = group_sum<LANES>(twist[i]);
                if (own > 0 || pixel < 0) continue;
                const int slopes = cell < 0 ? 0 : fits ? cell >> SLOPES : ranks[p];
                const A ty = weights[p].v[2] + weights[p].v[3], tx = weights[p].v[1] + weights[p].v[3];
                along_y[i] = slopes & SLOPE_Y ? mad(tx, both, y) : (A)0;
                along_y[HW + i] = slopes & SLOPE_X ? mad(ty, both, x) : (A)0;
            }
        }
        __syncthreads();  // before the next image
    }
}

// One thread's part of gather_nchw for CHANNELS channels, starting at c0: sums the samples of `column` into its corners and
// offset gradients. Indices within a map fit into 32 bits.
template <typename T, int CHANNELS, typename A> __device__ __forceinline__ void gather_channels(
    const T* __restrict__ g, const T* __restrict__ u, const Entry<A>* column, A* sum_y, A* sum_x, int length,
    A* __restrict__ parts, int c0, int C, int hw, int HW, int cell, int to_right, int to_below, int max_chunks) {
    Slopes<A> slopes[CHANNELS];
    A s00[CHANNELS], s01[CHANNELS], s10[CHANNELS], s11[CHANNELS];
#pragma unroll
    for (int j = 0; j < CHANNELS; ++j) {
        const unsigned at = (c0 + j) * hw + cell;
        slopes[j] = slopes_of<A>(widen(u[at]), widen(u[at + to_right]), widen(u[at + to_below]), widen(u[at + to_below + to_right]));
        s00[j] = s01[j] = s10[j] = s11[j] = (A)0;
    }
    for (int i = 0; i < length; ++i) {
        const Entry<A> entry = column[i * blockDim.x];
        const Weights<A> weight = tap_weights(entry.ty, entry.tx);
        A v[CHANNELS], down = 0, right = 0, twist = 0;
#pragma unroll
        for (int j = 0; j < CHANNELS; ++j) v[j] = widen(g[(unsigned)((c0 + j) * HW + entry.pixel)]);
#pragma unroll
        for (int j = 0; j < CHANNELS; ++j) {
            s00[j] = mad(weight.w00, v[j], s00[j]);
            s01[j] = mad(weight.w01, v[j], s01[j]);
            s10[j] = mad(weight.w10, v[j], s10[j]);
            s11[j] = mad(weight.w11, v[j], s11[j]);
            down = mad(slopes[j].down, v[j], down);
            right = mad(slopes[j].right, v[j], right);
            twist = mad(slopes[j].twist, v[j], twist);
        }
        sum_y[i * blockDim.x] += mad(entry.tx, twist, down);
        sum_x[i * blockDim.x] += mad(entry.ty, twist, right);
    }
    if (parts == nullptr) return;
    const size_t corner = (size_t)C * max_chunks;
    parts += (size_t)c0 * max_chunks;
#pragma unroll
    for (int j = 0; j < CHANNELS; ++j, parts += max_chunks) {
        parts[0] = s00[j];
        parts[corner] = s01[j];
        parts[2 * corner] = s10[j];
        parts[3 * corner] = s11[j];
    }
}

// NCHW. One thread per chunk of at most CAPACITY samples: neighbouring threads have neighbouring cells and read the same
// plane. MANY channels are held in registers at a time; the samples and their sums are in shared memory, in a column per
// thread.
template <typename T, int CAPACITY>
__global__ void __launch_bounds__(128, 4) gather_nchw(
    const T* __restrict__ grad, const T* __restrict__ input, const Chunk* __restrict__ chunks, const int* __restrict__ totals,
    const Entry<Acc<T>>* __restrict__ entries, Acc<T>* __restrict__ parts, Acc<T>* __restrict__ grad_offset,
    int first_map, int M, int C, int h, int w, int HW, int max_chunks) {
    using A = Acc<T>;
    constexpr int MANY = sizeof(A) == 8 ? 4 : 8;
    LAU_DYNAMIC_SHARED(Entry<A>, shared);
    const int index = blockIdx.x * blockDim.x + threadIdx.x, threads = blockDim.x;
    if (index >= totals[1]) return;  // the chunks after these were never written
    const Chunk chunk = chunks[index];
    Entry<A>* column = shared + threadIdx.x;
    A* sum_y = reinterpret_cast<A*>(shared + CAPACITY * threads) + threadIdx.x;
    A* sum_x = sum_y + CAPACITY * threads;
#pragma unroll 4
    for (int i = 0; i < chunk.length; ++i) {
        column[i * threads] = entries[chunk.begin + i];
        sum_y[i * threads] = sum_x[i * threads] = (A)0;
    }
    const int hw = h * w, map = chunk.cell / hw, cell = chunk.cell - map * hw, y = cell / w, x = cell - y * w;
    const int to_right = x < w - 1 ? 1 : 0, to_below = y < h - 1 ? w : 0;
    const T* u = input + (size_t)map * C * hw;
    const T* g = grad + (size_t)map * C * HW;
    A* out = parts == nullptr ? nullptr : parts + index;
    int c = 0;
    for (; c + MANY <= C; c += MANY)
        gather_channels<T, MANY>(g, u, column, sum_y, sum_x, chunk.length, out, c, C, hw, HW, cell, to_right, to_below, max_chunks);
    for (; c + 2 <= C; c += 2)
        gather_channels<T, 2>(g, u, column, sum_y, sum_x, chunk.length, out, c, C, hw, HW, cell, to_right, to_below, max_chunks);
    if (c < C)
        gather_channels<T, 1>(g, u, column, sum_y, sum_x, chunk.length, out, c, C, hw, HW, cell, to_right, to_below, max_chunks);
    if (grad_offset == nullptr) return;
    A* rows = grad_offset + offset_plane(first_map + map, M, HW);
#pragma unroll 4
    for (int i = 0; i < chunk.length; ++i) {
        const Entry<A> entry = column[i * threads];
        rows[entry.pixel] = entry.slopes & SLOPE_Y ? sum_y[i * threads] : (A)0;
        rows[entry.pixel + (size_t)M * HW] = entry.slopes & SLOPE_X ? sum_x[i * threads] : (A)0;
    }
}

// `parts` is [chunk][corner][C] (LAST) or [corner][C][max_chunks]. A cell without samples has no chunks. At the last row
// and column a cell's far corners do not exist; their weights are 0, so nothing is lost.
template <typename T, bool LAST>
__global__ void __launch_bounds__(256) combine(
    const Acc<T>* __restrict__ parts, const int* __restrict__ count, const int* __restrict__ first_chunk,
    T* __restrict__ grad_input, int maps, int C, int h, int w, int capacity, int max_chunks) {
    using A = Acc<T>;
    const int hw = h * w, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)maps * C * hw) return;
    int node, c;
    if (LAST) {
        node = i / C;
        c = i - node * C;
    } else {
        const int plane = i / hw, map = plane / C;
        node = map * hw + i - plane * hw;
        c = plane - map * C;
    }
    const int y = node % hw / w, x = node % w;  // hw is a multiple of w
    A sum = 0;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
        if (y < corner / 2 || x < corner % 2) continue;
        const int cell = node - corner / 2 * w - corner % 2, first = first_chunk[cell];
        const int end = first + chunks_of(count[cell], capacity);
        for (int chunk = first; chunk < end; ++chunk)
            sum += parts[LAST ? ((size_t)chunk * 4 + corner) * C + c : ((size_t)corner * C + c) * max_chunks + chunk];
    }
    grad_input[i] = narrow<T>(sum);
}

// The released code's derivative at an integer position is minus the value: its far tap drops out there. One thread per
// sample; `last` is 1 for NHWC, 0 for NCHW. Processes all maps.
template <typename T>
__global__ void __launch_bounds__(256, 2) integer_rule(
    const T* __restrict__ grad, const T* __restrict__ input, const Acc<T>* __restrict__ offset, Acc<T>* __restrict__ grad_offset,
    int maps, int M, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, int last) {
    using A = Acc<T>;
    const int hw = h * w, HW = hw * kh * kw, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= HW) return;
    const int step = last ? C : 1, next_u = last ? 1 : hw, next_g = last ? 1 : HW;
    for (int map = blockIdx.y; map < maps; map += gridDim.y) {
        const Position<A> p = position_of(offset, map, M, pixel, h, w, kh, kw, rkh, rkw);
        const Axis<A> y = locate(p.y, h), x = locate(p.x, w);
        const bool on_row = on_integer(p.y, h, y.t), on_column = on_integer(p.x, w, x.t);
        if (!(on_row || on_column) || p.y != p.y || p.x != p.x) continue;
        const Weights<A> weight = tap_weights(y.t, x.t);
        const T* u = input + (size_t)map * C * hw + (y.cell * w + x.cell) * step;
        const T* g = grad + (size_t)map * C * HW + (size_t)pixel * step;
        const int to_right = x.far * step, to_below = y.far * w * step;
        A value = 0;
        for (int c = 0; c < C; ++c, u += next_u, g += next_g)
            value = mad(widen(*g), blend<A>(weight, widen(u[0]), widen(u[to_right]), widen(u[to_below]), widen(u[to_below + to_right])), value);
        A* rows = grad_offset + offset_plane(map, M, HW) + pixel;
        if (on_row) rows[0] = -value;
        if (on_column) rows[(size_t)M * HW] = -value;
    }
}
