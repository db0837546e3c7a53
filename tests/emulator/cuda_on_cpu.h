// Enough of CUDA C++ to run a kernel on a CPU, strictly.
//
// Every thread of a block is a fibre. A barrier or a warp collective parks the fibre until all live threads of the block
// or warp have arrived; dynamic shared memory is filled with NaN before each block. What a GPU would leave undefined is an
// error: lanes at different collectives, a mask that lacks the caller, threads at a barrier that the others never reach.
// Subnormal numbers are 0, as CuPy compiles kernels (float64 too, of which a GPU keeps them).
//
// Blocks run one after another, and blocks, warps and lanes in the order that `emulator_schedule` sets: a race shows as a
// dependence on it. With EMULATOR_THREADS, three blocks run at a time, each in a thread of the operating system. The
// thread sanitizer then takes every fibre for a thread of which it knows only what CUDA promises: barriers order the
// accesses of a block, __syncwarp those of a warp, shuffles, atomics and blocks order nothing. It finds a race that did
// not show.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <thread>
#include <vector>
#include <sys/mman.h>
#ifdef __x86_64__
#include <xmmintrin.h>
#else
#include <ucontext.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif
#ifdef EMULATOR_THREADS
#define EMULATOR_LOCAL thread_local
#else
#define EMULATOR_LOCAL
#endif

#define LAU_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __constant__ static
#define __align__(n) alignas(n)
#define __shared__ static EMULATOR_LOCAL  // one block at a time in a thread; filled with NaN only where it is dynamic

struct uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

constexpr size_t STACK = 64 * 1024;
enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Fibre {
#ifdef __x86_64__
    void* sp;
#else
    ucontext_t context;
#endif
    void* sanitizer = nullptr;
    uint3 thread;
    int lane, warp;
    State state;
};
struct Warp {
    unsigned arrived = 0, live = 0, generation = 0;
    int collective = 0;
    char barrier[2];  // two, as for `exchange`
    uint64_t exchange[2][32];  // two, since a fast lane may enter the next collective before a slow one has read
    unsigned offered[2] = {0, 0};  // by which lanes: a fast one may have ended before a slow one has read
};
struct Block {
    std::vector<Fibre> fibres;
    std::vector<Warp> warps;
    Fibre* current = nullptr;
    unsigned arrived = 0, live = 0, generation = 0;
    char barrier[2];
    void* sanitizer = nullptr;
    uint3 index, dim, grid;
    unsigned char* dynamic = nullptr;
    void (*entry)(void*) = nullptr;
    void* argument = nullptr;
    std::string error;
    char* stacks = nullptr;
    size_t stack_bytes = 0;
#ifdef __x86_64__
    void* sp = nullptr;
#else
    ucontext_t context;
#endif
};
static EMULATOR_LOCAL Block block;

#ifdef __SANITIZE_THREAD__
static char launch_end;
inline void* created() { return __tsan_create_fiber(0); }
inline void destroyed(void* fibre) { __tsan_destroy_fiber(fibre); }
inline void* current() { return __tsan_get_current_fiber(); }
inline void continues(void* fibre) { __tsan_switch_to_fiber(fibre, __tsan_switch_to_fiber_no_sync); }
inline void before(char& event) { __tsan_release(&event); }
inline void after(char& event) { __tsan_acquire(&event); }
// The emulator's own accesses, which the sanitizer ignores.
struct Unseen {
    Unseen() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
    ~Unseen() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
};
#else
static char launch_end;
inline void* created() { return nullptr; }
inline void destroyed(void*) {}
inline void* current() { return nullptr; }
inline void continues(void*) {}
inline void before(char&) {}
inline void after(char&) {}
struct Unseen {
    Unseen() {}
};
#endif

// 0 and 1: ascending and descending. Any other number is the seed of random orders.
static uint64_t schedule = 0;
static EMULATOR_LOCAL uint64_t random_state;
extern "C" void emulator_schedule(uint64_t order) { schedule = order; }
inline uint64_t random_bits() {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state >> 11;
}

// The numbers 0 to n - 1, each once, among others that are to be skipped: `at(i)` for i from 0 to `last`.
struct Order {
    size_t last, start, step;
    explicit Order(size_t n) : last(1) {
        while (last < n) last *= 2;
        last--;
        start = schedule == 0 ? 0 : schedule == 1 ? last : random_bits();
        step = schedule == 0 ? 1 : schedule == 1 ? last : random_bits() | 1;
    }
    size_t at(size_t i) const { return (i * step + start) & last; }
};

// A subnormal number is 0, as operand and as result.
struct FlushSubnormals {
#ifdef __x86_64__
    unsigned saved = _mm_getcsr();
    FlushSubnormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(saved); }
#elif defined(__aarch64__)
    uint64_t saved;
    FlushSubnormals() { asm volatile("mrs %0, fpcr" : "=r"(saved)); asm volatile("msr fpcr, %0" ::"r"(saved | 1 << 24)); }
    ~FlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(saved)); }
#endif
};

#ifdef __x86_64__
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.weak emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");
inline void to_scheduler() { continues(block.sanitizer), emulator_switch(&block.current->sp, block.sp); }
inline void to_fibre(Fibre& f) { continues(f.sanitizer), emulator_switch(&block.sp, f.sp); }
#else
inline void to_scheduler() { continues(block.sanitizer), swapcontext(&block.current->context, &block.context); }
inline void to_fibre(Fibre& f) { continues(f.sanitizer), swapcontext(&block.context, &f.context); }
#endif

__noinline__ inline void end_thread() {
    const Unseen unseen;
    Fibre& f = *block.current;
    f.state = DONE;
    block.live--;
    block.warps[f.warp].live--;
}

inline void run_thread() {  // never returns: without variables, whose memory the address sanitizer would keep apart
    block.entry(block.argument);
    before(launch_end);
    end_thread();
    for (;;) to_scheduler();
}

inline void prepare(Fibre& f, char* stack) {
    f.state = READY;
    f.sanitizer = created();
#ifdef __x86_64__
    void** top = (void**)(((uintptr_t)stack + STACK) & ~(uintptr_t)15);
    *--top = nullptr;
    *--top = (void*)&run_thread;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    f.sp = top;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, (void (*)())run_thread, 0);
#endif
}

inline void fail(const char* what) {
    if (block.error.empty()) block.error = what;
}

inline void block_barrier() {
    const Unseen unseen;
    char& barrier = block.barrier[block.generation & 1];
    before(barrier);
    block.arrived++;
    block.current->state = AT_BLOCK;
    to_scheduler();
    after(barrier);
}

// Returns which of the two exchange buffers this collective uses.
inline int warp_barrier(unsigned mask, int collective, bool orders = false) {
    const Unseen unseen;
    Fibre& f = *block.current;
    Warp& w = block.warps[f.warp];
    const int buffer = w.generation & 1;
    if (!(mask >> f.lane & 1)) fail("a lane calls a collective whose mask lacks it");
    if (mask != 0xffffffffu) fail("the emulator takes collectives of whole warps only");
    if (w.arrived == 0) w.collective = collective;
    else if (w.collective != collective) fail("lanes of a warp are at different collectives");
    w.arrived++;
    f.state = AT_WARP;
    if (orders) before(w.barrier[buffer]);
    to_scheduler();
    if (orders) after(w.barrier[buffer]);
    return buffer;
}

template <typename T> inline void offer(T v) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    const Unseen unseen;
    Warp& w = block.warps[block.current->warp];
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof(T));
    w.exchange[w.generation & 1][block.current->lane] = bits;
    w.offered[w.generation & 1] |= 1u << block.current->lane;
}
template <typename T> inline T taken(int buffer, int lane) {
    const Unseen unseen;
    T v;
    memcpy(&v, &block.warps[block.current->warp].exchange[buffer][lane & 31], sizeof(T));
    return v;
}
template <typename T> inline T shuffle(unsigned mask, T v, int from, int collective) {
    offer(v);
    return taken<T>(warp_barrier(mask, collective), from);
}

inline void run_fibres() {
    Block& b = block;
    b.sanitizer = current();
    b.live = (unsigned)b.fibres.size();
    b.arrived = b.generation = 0;
    for (Warp& w : b.warps) w.arrived = w.live = w.generation = w.offered[0] = w.offered[1] = 0;
    for (size_t t = 0; t < b.fibres.size(); ++t) {
        b.warps[b.fibres[t].warp].live++;
        prepare(b.fibres[t], b.stacks + t * STACK);
    }
    while (b.live) {
        bool ran = false;
        const Order warps(b.warps.size());
        for (size_t i = 0; i <= warps.last; ++i) {
            const size_t warp = warps.at(i), first = warp * 32;
            if (warp >= b.warps.size()) continue;
            const size_t lanes = b.fibres.size() - first < 32 ? b.fibres.size() - first : 32;
            Warp& w = b.warps[warp];
            for (;;) {  // as long as the warp can go on by itself
                const Order order(lanes);
                for (size_t j = 0; j <= order.last; ++j) {
                    if (order.at(j) >= lanes) continue;
                    Fibre& f = b.fibres[first + order.at(j)];
                    if (f.state != READY) continue;
                    b.current = &f;
                    ran = true;
                    to_fibre(f);
                }
                if (!b.error.empty()) return;
                if (w.arrived == 0 || w.arrived != w.live) break;
                w.arrived = 0;
                w.generation++;
                w.offered[w.generation & 1] = 0;
                for (size_t j = 0; j < lanes; ++j)
                    if (b.fibres[first + j].state == AT_WARP) b.fibres[first + j].state = READY;
            }
        }
        if (b.arrived && b.arrived == b.live) {
            b.arrived = 0;
            b.generation++;
            ran = true;
            for (Fibre& f : b.fibres)
                if (f.state == AT_BLOCK) f.state = READY;
        }
        if (!ran) return fail("deadlock: threads wait at a barrier that the others never reach");
    }
}

inline void set_up(const unsigned* shape, void (*entry)(void*), void* argument) {
    Block& b = block;
    b.grid = {shape[0], shape[1], shape[2]};
    b.dim = {shape[3], shape[4], shape[5]};
    const size_t threads = (size_t)b.dim.x * b.dim.y * b.dim.z;
    b.fibres.resize(threads);
    b.warps.assign((threads + 31) / 32, Warp());
    if (b.stack_bytes < threads * STACK) {
        if (b.stacks) munmap(b.stacks, b.stack_bytes);
        b.stack_bytes = threads * STACK;
        b.stacks = (char*)mmap(nullptr, b.stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    for (unsigned t = 0; t < threads; ++t) {
        Fibre& f = b.fibres[t];
        f.thread = {t % b.dim.x, t / b.dim.x % b.dim.y, t / (b.dim.x * b.dim.y)};
        f.lane = t & 31;
        f.warp = t >> 5;
    }
    b.entry = entry;
    b.argument = argument;
    b.error.clear();
}

inline void run_block(size_t at, size_t shared) {
    Block& b = block;
    b.index = {(unsigned)(at % b.grid.x), (unsigned)(at / b.grid.x % b.grid.y), (unsigned)(at / b.grid.x / b.grid.y)};
    // Exactly as many bytes as asked for, on the heap: the address sanitizer sees an access past the end.
    b.dynamic = shared ? (unsigned char*)aligned_alloc(64, (shared + 63) / 64 * 64) : nullptr;
    if (shared) memset(b.dynamic, 0xff, shared);
    run_fibres();
    free(b.dynamic);
    for (Fibre& f : b.fibres) destroyed(f.sanitizer);
}

template <typename... P, size_t... I>
const char* launch(void (*kernel)(P...), const unsigned* shape, size_t shared, void** arguments, std::index_sequence<I...>) {
    static std::string message;
    auto call = [&]() { kernel(*(P*)arguments[I]...); };
    void (*const entry)(void*) = [](void* p) { (*(decltype(call)*)p)(); };
    const size_t blocks = (size_t)shape[0] * shape[1] * shape[2];
    random_state = schedule * 0x9e3779b97f4a7c15 | 1;
    const Order order(blocks);
    message.clear();
#ifdef EMULATOR_THREADS
    constexpr size_t TOGETHER = 3;
    std::thread running[TOGETHER];
    std::string errors[TOGETHER];
    const auto finish = [&](size_t slot) {
        if (running[slot].joinable()) running[slot].join();
        if (message.empty()) message = errors[slot];
    };
    for (size_t i = 0, slot = 0; i <= order.last && message.empty(); ++i) {
        const size_t at = order.at(i);
        if (at >= blocks) continue;
        finish(slot);
        running[slot] = std::thread([&, at, slot] {
            const Unseen unseen;
            const FlushSubnormals flush;
            random_state = (schedule + at) * 0x9e3779b97f4a7c15 | 1;
            set_up(shape, entry, &call);
            run_block(at, shared);
            munmap(block.stacks, block.stack_bytes);
            errors[slot] = block.error;
            block = Block();  // unseen, too
        });
        slot = (slot + 1) % TOGETHER;
    }
    for (size_t slot = 0; slot < TOGETHER; ++slot) finish(slot);
#else
    const FlushSubnormals flush;
    set_up(shape, entry, &call);
    for (size_t i = 0; i <= order.last && block.error.empty(); ++i)
        if (order.at(i) < blocks) run_block(order.at(i), shared);
    message = block.error;
#endif
    after(launch_end);
    return message.empty() ? nullptr : message.c_str();
}

template <typename... P> const char* launch(void (*kernel)(P...), const unsigned* shape, size_t shared, void** arguments) {
    return launch(kernel, shape, shared, arguments, std::index_sequence_for<P...>{});
}

// Size and kind (p, f, i or s for a structure) of each parameter.
template <typename P> constexpr char kind() {
    return std::is_pointer<P>::value ? 'p' : std::is_floating_point<P>::value ? 'f' : std::is_integral<P>::value ? 'i' : 's';
}
template <typename... P> int parameters(void (*)(P...), int* sizes, char* kinds) {
    const int s[] = {(int)sizeof(P)...};
    const char k[] = {kind<P>()...};
    memcpy(sizes, s, sizeof(s));
    memcpy(kinds, k, sizeof(k));
    return sizeof...(P);
}

}  // namespace emulator

#define threadIdx (emulator::block.current->thread)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.dim)
#define gridDim (emulator::block.grid)
#define warpSize 32
#define LAU_CHECK_ALIGNED(p, bytes) \
    if (reinterpret_cast<uintptr_t>(p) % (bytes)) emulator::fail("an access is not aligned to its size")
#define LAU_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(emulator::block.dynamic)

// ---------------------------------------------------------------------------------------- barriers and collectives

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::warp_barrier(mask, 1, true); }
template <typename T> inline T __shfl_xor_sync(unsigned mask, T v, int d, int width = 32) {
    const int lane = emulator::block.current->lane, from = lane ^ d;
    return emulator::shuffle(mask, v, from / width <= lane / width ? from : lane, 2);
}
template <typename T> inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    const int lane = emulator::block.current->lane;
    return emulator::shuffle(mask, v, lane / width * width + (source & (width - 1)), 3);
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T v, int d, int width = 32) {
    const int lane = emulator::block.current->lane;
    return emulator::shuffle(mask, v, lane % width + d < width ? lane + d : lane, 4);
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T v, int d, int width = 32) {
    const int lane = emulator::block.current->lane;
    return emulator::shuffle(mask, v, lane % width >= d ? lane - d : lane, 5);
}
namespace emulator {
// Bit i: lane i is live and `test(its value)` holds.
template <typename T, typename Test> inline unsigned vote(unsigned mask, T v, int collective, Test test) {
    offer(v);
    const int buffer = warp_barrier(mask, collective);
    const Unseen unseen;
    const unsigned live = block.warps[block.current->warp].offered[buffer];
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i)
        if (live >> i & 1 && test(taken<T>(buffer, i))) votes |= 1u << i;
    return votes;
}
}  // namespace emulator
inline unsigned __ballot_sync(unsigned mask, int v) { return emulator::vote(mask, v, 6, [](int o) { return o != 0; }); }
inline int __any_sync(unsigned mask, int v) { return emulator::vote(mask, v, 7, [](int o) { return o != 0; }) != 0; }
inline int __reduce_max_sync(unsigned mask, int v) {
    int most = v;
    emulator::vote(mask, v, 10, [&most](int o) { return most = o > most ? o : most, false; });
    return most;
}
inline int __all_sync(unsigned mask, int v) { return emulator::vote(mask, v, 8, [](int o) { return o == 0; }) == 0; }
template <typename T> inline unsigned __match_any_sync(unsigned mask, T v) {
    return emulator::vote(mask, v, 9, [v](T o) { return memcmp(&o, &v, sizeof(T)) == 0; });
}

// ------------------------------------------------------------------------------------------------------- functions

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __log2f(float v) { return std::log2(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
template <typename T> inline T __ldg(const T* p) { return *p; }
template <typename T> inline T __ldcs(const T* p) { return *p; }
template <typename T> inline void __stcs(T* p, T v) { *p = v; }
template <typename T> inline void __stcg(T* p, T v) { *p = v; }
namespace emulator {
template <typename T, typename Change> inline T change(T* p, Change changed) {
    T old, desired;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do desired = changed(old);
    while (!__atomic_compare_exchange(p, &old, &desired, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
}  // namespace emulator
template <typename T, typename V> inline T atomicAdd(T* p, V v) { return emulator::change(p, [v](T old) { return old + (T)v; }); }
template <typename T, typename V> inline T atomicMax(T* p, V v) { return emulator::change(p, [v](T old) { return old > (T)v ? old : (T)v; }); }

inline float emulated_half_to_float(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    const float magnitude = exponent ? std::ldexp((float)(fraction | 0x400u), (int)exponent - 25) : std::ldexp((float)fraction, -24);
    return sign ? -magnitude : magnitude;
}
inline unsigned short emulated_float_to_half(float v) {
    const unsigned u = __float_as_uint(v), magnitude = u & 0x7fffffffu;
    const unsigned short sign = (unsigned short)(u >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return (unsigned short)(sign | 0x7fff);
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00);  // 65520 and above round to infinity
    // The distance between two halves of this size, below 2^-14 that of the subnormals; nearbyint rounds ties to even.
    if (magnitude == 0) return sign;
    int exponent;
    std::frexp(__uint_as_float(magnitude), &exponent);
    const int step = exponent - 11 < -24 ? -24 : exponent - 11;
    unsigned steps = (unsigned)std::nearbyint(std::ldexp(__uint_as_float(magnitude), -step));
    return (unsigned short)(sign | (unsigned short)(steps + ((step + 24) << 10)));
}
