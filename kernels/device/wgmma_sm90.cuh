// Device code for Hopper's warpgroup matrix products (PTX wgmma) on bf16 (where
// said so, fp16) tiles with float32 accumulators, and the tile layout they
// read.
//
// A slab is a [64 rows][64 columns] 16-bit matrix in shared memory, 128 bytes a
// row, aligned to 1024 bytes; the 16-byte pieces of row r are permuted by
// XOR with r % 8 (the 128-byte swizzle of TMA and wgmma). A slab serves as an
// operand both ways: contracted along its columns (kAlongColumns: its rows are
// the operand's M or N) or along its rows (kAlongRows: its columns are M or N).
// A half slab has 32 columns, 64 bytes a row; its pieces are permuted by XOR
// with r / 2 % 4 (the 64-byte swizzle); it serves both ways, too. (A slab of 32
// floats a row has the same layout, and serves along its columns: WgmmaWide.)
//
// Accumulator of a 64 x 64 product, 32 floats a thread: with warp w and lane l
// of the warpgroup, element [4 j + 2 i + e] is row 16 w + l / 4 + 8 i, column
// 8 j + 2 (l % 4) + e.
#ifndef GLA_KERNELS_DEVICE_WGMMA_SM90_CUH_
#define GLA_KERNELS_DEVICE_WGMMA_SM90_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace gla {

inline constexpr int kSlabBytes = 64 * 128;
inline constexpr int kHalfSlabBytes = kSlabBytes / 2;

enum class Contract { kAlongColumns = 0, kAlongRows = 1 };

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Byte offset of the 16-byte piece `piece` (0..7) of row `row` in a slab.
__device__ inline uint32_t SlabOffset(int row, int piece) {
  return row * 128 + ((piece ^ (row & 7)) << 4);
}

// Byte offset of element (row, column).
__device__ inline uint32_t SlabElement(int row, int column) {
  return SlabOffset(row, column >> 3) + (column & 7) * 2;
}

// Byte offset of the 16-byte piece `piece` (0..3) of row `row` in a half slab.
__device__ inline uint32_t HalfSlabOffset(int row, int piece) {
  return row * 64 + ((piece ^ (row >> 1 & 3)) << 4);
}

// The matrix descriptor of a slab at a shared address: start, leading offset
// (along columns that are M or N, to the next slab), 1024 bytes between groups
// of 8 rows, 128-byte swizzle.
__device__ inline uint64_t SlabDescriptor(uint32_t address) {
  constexpr uint64_t kLeading = uint64_t{kSlabBytes >> 4} << 16;
  constexpr uint64_t kStride = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return ((address & 0x3ffff) >> 4) | kLeading | kStride | kSwizzle128;
}

// That of a half slab: leading offset, if its columns are M or N, 512 bytes
// between groups of 8 rows, 64-byte swizzle.
template <int kLeadingBytes = 0>
__device__ inline uint64_t HalfSlabDescriptor(uint32_t address) {
  constexpr uint64_t kLeading = uint64_t{kLeadingBytes >> 4} << 16;
  constexpr uint64_t kStride = uint64_t{512 >> 4} << 32;
  constexpr uint64_t kSwizzle64 = uint64_t{2} << 62;
  return ((address & 0x3ffff) >> 4) | kLeading | kStride | kSwizzle64;
}

// The descriptor of the 16-deep step `step` of a slab's contraction: 0..3 (with
// floats 8-deep); of a half slab's along its columns 0 or 1.
template <Contract kContract>
__device__ inline uint64_t StepDescriptor(uint64_t slab, int step) {
  constexpr int kBytes = kContract == Contract::kAlongColumns ? 32 : 2048;
  return slab + step * (kBytes >> 4);
}

__device__ inline void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending committed groups are unfinished.
template <int kPending>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define GLA_WGMMA_ACCUMULATORS(d)                                         \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), \
      "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),        \
      "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),    \
      "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),    \
      "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),    \
      "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),    \
      "+f"(d[31])

#define GLA_WGMMA_LIST                                                     \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "     \
  "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, " \
  "%29, %30, %31}, "

// d (+)= A B over a contraction of 16; d is overwritten unless `accumulate`.
// A [64, 16] comes from registers: a[0], a[1] rows l / 4 and l / 4 + 8 of the
// warp's 16, columns 2 (l % 4) + {0, 1}; a[2], a[3] the same with columns + 8.
template <Contract kB>
__device__ inline void Wgmma(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                             bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " GLA_WGMMA_LIST
      "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : GLA_WGMMA_ACCUMULATORS(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
        "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kB)));
}

// The same with A from a slab. Operands are bf16 or fp16.
template <Contract kA, Contract kB, typename Operand = __nv_bfloat16>
__device__ inline void Wgmma(float (&d)[32], uint64_t a, uint64_t b,
                             bool accumulate) {
#define GLA_WGMMA_SLABS(types)                                               \
  asm volatile(                                                              \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                           \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." types " " GLA_WGMMA_LIST \
      "%32, %33, p, 1, 1, %35, %36;\n}\n"                                    \
      : GLA_WGMMA_ACCUMULATORS(d)                                            \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)),                   \
        "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)))
  if constexpr (std::is_same_v<Operand, __half>) {
    GLA_WGMMA_SLABS("f16.f16");
  } else {
    GLA_WGMMA_SLABS("bf16.bf16");
  }
#undef GLA_WGMMA_SLABS
}

// d += A B over a contraction of 8 floats, of which the first 11 significant
// bits count; slabs have 32 columns.
__device__ inline void WgmmaWide(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 " GLA_WGMMA_LIST
      "%32, %33, 1, 1, 1;\n"
      : GLA_WGMMA_ACCUMULATORS(d)
      : "l"(a), "l"(b));
}

// A 64 x 128 product, A from a slab, B from two slabs in a row, one behind the
// other along B's N: d0 has the first's 64 columns, d1 the second's.
template <Contract kA, Contract kB>
__device__ inline void Wgmma(float (&d0)[32], float (&d1)[32], uint64_t a,
                             uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "
      "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, "
      "%29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, "
      "%43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, "
      "%57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, %67, %68;\n}\n"
      : GLA_WGMMA_ACCUMULATORS(d0), GLA_WGMMA_ACCUMULATORS(d1)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)),
        "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));
}

// A 64 x 256 product in the same way, B from four slabs.
template <Contract kA, Contract kB>
__device__ inline void Wgmma(float (&d)[4][32], uint64_t a, uint64_t b,
                             bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
      "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
      "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
      "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, "
      "%74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "
      "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
      "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, "
      "%109, %110, %111, %112, %113, %114, %115, %116, %117, %118, "
      "%119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, %131, %132;\n}\n"
      : GLA_WGMMA_ACCUMULATORS(d[0]), GLA_WGMMA_ACCUMULATORS(d[1]),
        GLA_WGMMA_ACCUMULATORS(d[2]), GLA_WGMMA_ACCUMULATORS(d[3])
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)),
        "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));
}

// A 64 x 32 product, A and B from slabs: d's columns are B's first 32.
// Elements as in the 64 x 64 accumulator, j < 4.
template <Contract kA, Contract kB>
__device__ inline void Wgmma(float (&d)[16], uint64_t a, uint64_t b,
                             bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "
      "%15}, %16, %17, p, 1, 1, %19, %20;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
        "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
        "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)),
        "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));
}

// A 64 x 16 product, A from registers.
template <Contract kB>
__device__ inline void Wgmma(float (&d)[8], const uint32_t (&a)[4], uint64_t b,
                             bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, p, 1, 1, "
      "%14;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
        "+f"(d[6]), "+f"(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
        "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kB)));
}

// A 64 x 32 product, A from registers.
template <Contract kB>
__device__ inline void Wgmma(float (&d)[16], const uint32_t (&a)[4], uint64_t b,
                             bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
      "%14, %15}, "
      "{%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
        "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
        "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
        "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kB)));
}

// A 64 x 48 product, A from registers.
template <Contract kB>
__device__ inline void Wgmma(float (&d)[24], const uint32_t (&a)[4], uint64_t b,
                             bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %29, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
      "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23}, "
      "{%24, %25, %26, %27}, %28, p, 1, 1, %30;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
        "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
        "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
        "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kB)));
}

#undef GLA_WGMMA_ACCUMULATORS
#undef GLA_WGMMA_LIST

// d += A B by a warp alone: A [16, 16] as a warp's part of one above, B [16,
// 8]: b0 rows 2 (l % 4) + {0, 1} of column l / 4, b1 those 8 on; d[2 i + e] row
// l / 4 + 8 i, column 2 (l % 4) + e.
__device__ inline void Mma(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                           float* d) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Tells the compiler that asynchronous products may have changed d.
template <int kSize>
__device__ inline void Touch(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Two floats rounded to bf16 in one register, `low` in the low half.
__device__ inline uint32_t PackBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ inline float LowFloat(uint32_t packed) {
  return __uint_as_float(packed << 16);
}
__device__ inline float HighFloat(uint32_t packed) {
  return __uint_as_float(packed & 0xffff0000u);
}

// Two fp16 numbers; infinite from 2^16 on.
__device__ inline uint32_t PackHalf(float low, float high) {
  const __half2 packed = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(packed);
}

// Columns 16 step .. 16 step + 15 of an accumulator as an A operand.
__device__ inline void PackOperand(const float (&d)[32], int step,
                                   uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = PackBf16(d[8 * step + 2 * i], d[8 * step + 2 * i + 1]);
  }
}

// What rounding left out of that, itself rounded.
__device__ inline void PackRest(const float (&d)[32], int step,
                                const uint32_t (&a)[4], uint32_t (&rest)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    rest[i] = PackBf16(d[8 * step + 2 * i] - LowFloat(a[i]),
                       d[8 * step + 2 * i + 1] - HighFloat(a[i]));
  }
}

// Reads four 8 x 8 matrices, transposed; lanes 8 m .. 8 m + 7 give the
// addresses of matrix m's rows.
__device__ inline void LoadMatrixTransposed(uint32_t row, uint32_t (&a)[4]) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
      : "r"(row)
      : "memory");
}
// The same not transposed.
__device__ inline void LoadMatrix(uint32_t row, uint32_t (&a)[4]) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
      : "r"(row)
      : "memory");
}
// Writes four 8 x 8 matrices; lanes 8 m .. 8 m + 7 give the addresses of matrix
// m's rows.
__device__ inline void StoreMatrix(uint32_t row, const uint32_t (&a)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
          row),
      "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
      : "memory");
}
// Writes four 8 x 8 matrices, transposed.
__device__ inline void StoreMatrixTransposed(uint32_t row,
                                             const uint32_t (&a)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, "
      "%4};" ::"r"(row),
      "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
      : "memory");
}

// Transposes 4 x 4 words among the four lanes of a quad: word m of lane q
// becomes word q of lane m.
__device__ inline void TransposeQuad(uint32_t (&w)[4]) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = lane & distance;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      if (m & distance) continue;
      const uint32_t first = w[m], second = w[m + distance];
      const uint32_t other =
          __shfl_xor_sync(0xffffffff, upper ? first : second, distance);
      w[m] = upper ? other : first;
      w[m + distance] = upper ? second : other;
    }
  }
}

}  // namespace gla

#endif  // GLA_KERNELS_DEVICE_WGMMA_SM90_CUH_
