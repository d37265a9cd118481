/* Loops over elements, compiled: the same functions as in planes.py, which says what they do. Both give the same bytes
 * (SPEC.md, section 6).
 *
 * Every function takes contiguous buffers, checks all sizes before it touches them, and lets other threads run
 * meanwhile. Nothing is kept between calls.
 *
 * Loops are written for one width at a time, and branches that depend on data are kept out of most, so that a compiler
 * can make vector instructions of them.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if PY_LITTLE_ENDIAN == 0
#error "elements are little-endian"
#endif

#if defined(__GNUC__) && defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#define VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define VECTORS
#endif

/* Several elements are moved at once where the processor can do that. */
#if defined(__GNUC__) && defined(__x86_64__) && defined(__gnu_linux__)
#include <immintrin.h>
#define EIGHTS __attribute__((target("avx2,popcnt")))
#endif

#define KEYS 256
#define SMALL 8
#define FEW 32     /* of a block, which it is faster to look for than to look at each element */
#define BLOCK 1024 /* elements that are worked on at once, where a loop goes over them twice */

/* --- arguments --- */

/* Get a buffer of one dimension; items of `itemsize` bytes, or, if that is 0, of 1, 2, 4 or 8. */
static int get(PyObject *object, Py_buffer *view, int writable, Py_ssize_t itemsize)
{
    if (PyObject_GetBuffer(object, view, PyBUF_ND | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)) < 0) {
        view->obj = NULL;
        return -1;
    }
    Py_ssize_t size = view->itemsize;
    if (view->ndim == 1 && (itemsize ? size == itemsize : size == 1 || size == 2 || size == 4 || size == 8))
        return 0;
    PyBuffer_Release(view);
    view->obj = NULL;
    PyErr_SetString(PyExc_ValueError, "an array of another shape or type is needed");
    return -1;
}

static void release(Py_buffer *views, int count)
{
    for (int number = 0; number < count; number++)
        if (views[number].obj)
            PyBuffer_Release(&views[number]);
}

/* Get all of several buffers, each of a kind: e elements, b bytes, q integers of 8 bytes; a capital is writable. */
static int get_all(PyObject *const *objects, Py_buffer *views, const char *kinds)
{
    for (int number = 0; kinds[number]; number++) {
        char kind = (char)(kinds[number] | 0x20);
        if (get(objects[number], &views[number], kinds[number] != kind, kind == 'e' ? 0 : kind == 'b' ? 1 : 8) < 0)
            return -1;
    }
    return 0;
}

static PyObject *refused(Py_buffer *views, int count, const char *reason)
{
    release(views, count);
    if (reason)
        PyErr_SetString(PyExc_ValueError, reason);
    return NULL;
}

static Py_ssize_t length(const Py_buffer *view)
{
    return view->len / view->itemsize;
}

#define WRONG_SIZES "arrays whose sizes do not fit together"

/* Call the function of that name for the width of the elements. */
#define FOR_WIDTH(width, name, ...)                                                                                    \
    switch (width) {                                                                                                   \
    case 1: name##_1(__VA_ARGS__); break;                                                                              \
    case 2: name##_2(__VA_ARGS__); break;                                                                              \
    case 4: name##_4(__VA_ARGS__); break;                                                                              \
    default: name##_8(__VA_ARGS__); break;                                                                             \
    }

/* --- the loops, for each width --- */

/* Chunks begin anywhere in a buffer, so elements need not lie where a processor likes them. */
#if defined(__GNUC__)
#define ANYWHERE __attribute__((aligned(1)))
#else
#define ANYWHERE
#endif

typedef uint8_t u1;
typedef uint16_t u2 ANYWHERE;
typedef uint32_t u4 ANYWHERE;
typedef uint64_t u8 ANYWHERE;
typedef int8_t i1;
typedef int16_t i2;
typedef int32_t i4;
typedef int64_t i8 ANYWHERE;

#define BITS(W) (8 * (W))
#define TOP(W) ((u##W)((u##W)1 << (BITS(W) - 1)))
#define ROTATED(W, v) ((u##W)((u##W)((v) << 1) | (u##W)((v) >> (BITS(W) - 1))))
#define ROTATED_BACK(W, v) ((u##W)((u##W)((v) >> 1) | (u##W)((v) << (BITS(W) - 1))))
/* All ones if the highest bit is set, else 0. */
#define SIGNS(W, v) ((u##W)((i##W)(v) >> (BITS(W) - 1)))
#define ORDERED(W, v) ((u##W)((v) ^ (u##W)(SIGNS(W, v) | TOP(W))))
#define UNORDERED(W, v) ((u##W)((v) ^ (u##W)((u##W)~SIGNS(W, v) | TOP(W))))
#define ZIGZAG(W, d) ((u##W)((u##W)((d) << 1) ^ SIGNS(W, d)))
#define UNZIGZAG(W, z) ((u##W)((u##W)((z) >> 1) ^ (u##W)(0 - (u##W)((z)&1))))

/* --- moving elements to and from groups --- */

struct groups {
    const u1 *numbers; /* the number of the group of each key */
    int count;
    u4 total;      /* elements of all groups */
    u4 next[KEYS]; /* for each group, where its next element belongs among all, sorted by groups */
    int are_runs;  /* whether each has keys, which are neighbours: */
    u1 firsts[KEYS], lasts[KEYS];
};

/* Find where elements with these keys belong; tell whether all of these places are there. They are found before
 * anything is moved: else a processor would wait at each until it knows that the table of places was not written to. */
VECTORS static int find_places(const u1 *restrict keys, struct groups *groups, u4 *restrict places, Py_ssize_t n)
{
    const u1 *restrict numbers = groups->numbers;
    u4 *restrict next = groups->next, largest = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        places[i] = next[numbers[keys[i]]]++;
    for (Py_ssize_t i = 0; i < n; i++)
        largest = places[i] > largest ? places[i] : largest;
    return !n || largest < groups->total;
}

/* Of elements of two bytes, `scatter_eights` and `gather_eights` move as many as they can like `scatter` and `gather`
 * below, and return how many these were; -1 if their places are not there. */
#ifndef EIGHTS
static void prepare_eights(void) {}

static Py_ssize_t scatter_eights(const u2 *block, const u1 *keys, struct groups *groups, u2 *out, Py_ssize_t n)
{
    (void)block, (void)keys, (void)groups, (void)out, (void)n;
    return 0;
}

static Py_ssize_t gather_eights(const u2 *found, const u1 *keys, struct groups *groups, u2 *block, Py_ssize_t n)
{
    (void)found, (void)keys, (void)groups, (void)block, (void)n;
    return 0;
}
#else
#define MOST_GROUPS 16 /* each takes a pass over a block; with more of them it is faster to move one at a time */

/* For each set of eight lanes, by bytes: which lanes are in it, one after another; and for each lane which one of these
 * it is. 128 stands for none. */
static u1 chosen[256][16], spread[256][16];
static int has_eights;

static void prepare_eights(void)
{
    memset(chosen, 128, sizeof chosen);
    memset(spread, 128, sizeof spread);
    for (int set = 0; set < 256; set++)
        for (int lane = 0, count = 0; lane < 8; lane++)
            if (set >> lane & 1) {
                for (int byte = 0; byte < 2; byte++) {
                    chosen[set][2 * count + byte] = (u1)(2 * lane + byte);
                    spread[set][2 * lane + byte] = (u1)(2 * count + byte);
                }
                count++;
            }
    has_eights = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
}

EIGHTS static inline __m128i load(const void *place) { return _mm_loadu_si128(place); }

EIGHTS static inline void store(void *place, __m128i value) { _mm_storeu_si128(place, value); }

/* Which of 16 keys lie between two. */
EIGHTS static inline unsigned members(const u1 *keys, __m128i first, __m128i last)
{
    __m128i some = load(keys);
    return (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(some, _mm_min_epu8(_mm_max_epu8(some, first), last)));
}

EIGHTS static Py_ssize_t scatter_eights(const u2 *block, const u1 *keys, struct groups *groups, u2 *out, Py_ssize_t n)
{
    u2 part[BLOCK + 8];
    if (!has_eights || !groups->are_runs || groups->count > MOST_GROUPS)
        return 0;
    n -= n % 16;
    for (int group = 0; group < groups->count; group++) {
        __m128i first = _mm_set1_epi8((char)groups->firsts[group]), last = _mm_set1_epi8((char)groups->lasts[group]);
        u4 place = groups->next[group], count = 0;
        for (Py_ssize_t i = 0; i < n; i += 16) {
            unsigned sets = members(keys + i, first, last), low = sets & 255, high = sets >> 8;
            store(part + count, _mm_shuffle_epi8(load(block + i), load(chosen[low])));
            count += (u4)__builtin_popcount(low);
            store(part + count, _mm_shuffle_epi8(load(block + i + 8), load(chosen[high])));
            count += (u4)__builtin_popcount(high);
        }
        if (count > groups->total - place)
            return -1;
        memcpy(out + place, part, count * sizeof(u2));
        groups->next[group] = place + count;
    }
    return n;
}

EIGHTS static Py_ssize_t gather_eights(const u2 *found, const u1 *keys, struct groups *groups, u2 *block, Py_ssize_t n)
{
    u2 part[BLOCK + 8];
    if (!has_eights || !groups->are_runs || groups->count > MOST_GROUPS)
        return 0;
    n -= n % 16;
    memset(block, 0, (size_t)n * sizeof(u2));
    for (int group = 0; group < groups->count; group++) {
        __m128i first = _mm_set1_epi8((char)groups->firsts[group]), last = _mm_set1_epi8((char)groups->lasts[group]);
        u4 place = groups->next[group], left = groups->total - place, count = 0;
        const u2 *from = found + place;
        if (left < BLOCK + 8) { /* eight are read at once, whether they are there or not */
            memset(part, 0, sizeof part);
            from = memcpy(part, from, left * sizeof(u2));
        }
        for (Py_ssize_t i = 0; i < n; i += 16) {
            unsigned sets = members(keys + i, first, last), low = sets & 255, high = sets >> 8;
            __m128i some = _mm_shuffle_epi8(load(from + count), load(spread[low]));
            store(block + i, _mm_or_si128(load(block + i), some));
            count += (u4)__builtin_popcount(low);
            some = _mm_shuffle_epi8(load(from + count), load(spread[high]));
            store(block + i + 8, _mm_or_si128(load(block + i + 8), some));
            count += (u4)__builtin_popcount(high);
        }
        if (count > left)
            return -1;
        groups->next[group] = place + count;
    }
    return n;
}
#endif

#define SHARED_LOOPS(W)                                                                                                \
    VECTORS static void key_counts_##W(const u##W *base, i8 *counts, Py_ssize_t n, int shift)                          \
    {                                                                                                                  \
        u4 found[4][KEYS] = {{0}}; /* in turn: equal keys in a row need not wait for one another */                    \
        Py_ssize_t i = 0;                                                                                              \
        for (; i + 4 <= n; i += 4) {                                                                                   \
            found[0][(base[i] >> shift) & 255]++;                                                                      \
            found[1][(base[i + 1] >> shift) & 255]++;                                                                  \
            found[2][(base[i + 2] >> shift) & 255]++;                                                                  \
            found[3][(base[i + 3] >> shift) & 255]++;                                                                  \
        }                                                                                                              \
        for (; i < n; i++)                                                                                             \
            found[0][(base[i] >> shift) & 255]++;                                                                      \
        for (int key = 0; key < KEYS; key++)                                                                           \
            counts[key] = (i8)found[0][key] + found[1][key] + found[2][key] + found[3][key];                           \
    }                                                                                                                  \
    VECTORS static void differ_##W(const u##W *values, const u##W *base, u##W *out, Py_ssize_t n, int is_float)        \
    {                                                                                                                  \
        if (is_float)                                                                                                  \
            for (Py_ssize_t i = 0; i < n; i++) {                                                                       \
                u##W d = (u##W)(ORDERED(W, values[i]) - ORDERED(W, base[i]));                                          \
                out[i] = ZIGZAG(W, d);                                                                                 \
            }                                                                                                          \
        else                                                                                                           \
            for (Py_ssize_t i = 0; i < n; i++) {                                                                       \
                u##W d = (u##W)(values[i] - base[i]);                                                                  \
                out[i] = ZIGZAG(W, d);                                                                                 \
            }                                                                                                          \
    }                                                                                                                  \
    VECTORS static void keys_of_##W(const u##W *base, u1 *restrict keys, Py_ssize_t n, int shift)                      \
    {                                                                                                                  \
        for (Py_ssize_t i = 0; i < n; i++)                                                                             \
            keys[i] = (u1)(base[i] >> shift);                                                                          \
    }                                                                                                                  \
    /* Move a block of elements to where they belong among all; tell whether these places are there. */                \
    static int scatter_##W(const u##W *block, const u1 *keys, struct groups *groups, u##W *out, Py_ssize_t n)          \
    {                                                                                                                  \
        u4 places[BLOCK];                                                                                              \
        Py_ssize_t done = W == 2 ? scatter_eights((const u2 *)block, keys, groups, (u2 *)out, n) : 0;                  \
        if (done < 0 || !find_places(keys + done, groups, places, n - done))                                           \
            return 0;                                                                                                  \
        for (Py_ssize_t i = 0; done + i < n; i++)                                                                      \
            out[places[i]] = block[done + i];                                                                          \
        return 1;                                                                                                      \
    }                                                                                                                  \
    /* Move them back. */                                                                                              \
    static int gather_##W(const u##W *found, const u1 *keys, struct groups *groups, u##W *block, Py_ssize_t n)         \
    {                                                                                                                  \
        u4 places[BLOCK];                                                                                              \
        Py_ssize_t done = W == 2 ? gather_eights((const u2 *)found, keys, groups, (u2 *)block, n) : 0;                 \
        if (done < 0 || !find_places(keys + done, groups, places, n - done))                                           \
            return 0;                                                                                                  \
        for (Py_ssize_t i = 0; done + i < n; i++)                                                                      \
            block[done + i] = found[places[i]];                                                                        \
        return 1;                                                                                                      \
    }                                                                                                                  \
    static int differences_##W(const u##W *values, const u##W *base, struct groups *groups, u##W *out, Py_ssize_t n,   \
                                int is_float, int shift)                                                               \
    {                                                                                                                  \
        if (groups->count == 1) { /* nothing need be sorted */                                                         \
            differ_##W(values, base, out, n, is_float);                                                                \
            return 1;                                                                                                  \
        }                                                                                                              \
        u##W block[BLOCK];                                                                                             \
        u1 keys[BLOCK];                                                                                                \
        for (Py_ssize_t start = 0; start < n; start += BLOCK) {                                                        \
            Py_ssize_t count = n - start < BLOCK ? n - start : BLOCK;                                                  \
            differ_##W(values + start, base + start, block, count, is_float);                                          \
            keys_of_##W(base + start, keys, count, shift);                                                             \
            if (!scatter_##W(block, keys, groups, out, count))                                                         \
                return 0;                                                                                              \
        }                                                                                                              \
        return 1;                                                                                                      \
    }                                                                                                                  \
    VECTORS static void add_##W(const u##W *found, const u##W *base, u##W *out, Py_ssize_t n, int is_float)            \
    {                                                                                                                  \
        if (is_float)                                                                                                  \
            for (Py_ssize_t i = 0; i < n; i++) {                                                                       \
                u##W o = (u##W)(UNZIGZAG(W, found[i]) + ORDERED(W, base[i]));                                          \
                out[i] = UNORDERED(W, o);                                                                              \
            }                                                                                                          \
        else                                                                                                           \
            for (Py_ssize_t i = 0; i < n; i++)                                                                         \
                out[i] = (u##W)(UNZIGZAG(W, found[i]) + base[i]);                                                      \
    }                                                                                                                  \
    static int sums_##W(const u##W *found, const u##W *base, struct groups *groups, u##W *out, Py_ssize_t n,           \
                         int is_float, int shift)                                                                      \
    {                                                                                                                  \
        if (groups->count == 1) {                                                                                      \
            add_##W(found, base, out, n, is_float);                                                                    \
            return 1;                                                                                                  \
        }                                                                                                              \
        u##W block[BLOCK];                                                                                             \
        u1 keys[BLOCK];                                                                                                \
        for (Py_ssize_t start = 0; start < n; start += BLOCK) {                                                        \
            Py_ssize_t count = n - start < BLOCK ? n - start : BLOCK;                                                  \
            keys_of_##W(base + start, keys, count, shift);                                                             \
            if (!gather_##W(found, keys, groups, block, count))                                                        \
                return 0;                                                                                              \
            add_##W(block, base + start, out + start, count, is_float);                                                \
        }                                                                                                              \
        return 1;                                                                                                      \
    }                                                                                                                  \
    static void measure_##W(const u##W *values, Py_ssize_t n, Py_ssize_t step, i8 *lengths, i8 *small)                 \
    {                                                                                                                  \
        for (Py_ssize_t i = 0; i < n; i += step) {                                                                     \
            int length;                                                                                                \
            frexp((double)values[i], &length);                                                                         \
            *lengths += length;                                                                                        \
            *small += values[i] < SMALL ? (i8)values[i] : SMALL;                                                       \
        }                                                                                                              \
    }                                                                                                                  \
    /* One byte of each value, so many bits from the lowest. */                                                        \
    VECTORS static void byte_of_##W(const u##W *values, u1 *out, Py_ssize_t n, int shift)                              \
    {                                                                                                                  \
        for (Py_ssize_t i = 0; i < n; i++)                                                                             \
            out[i] = (u1)(values[i] >> shift);                                                                         \
    }                                                                                                                  \
    VECTORS static void or_byte_##W(u##W *values, const u1 *bytes, Py_ssize_t n, int shift)                            \
    {                                                                                                                  \
        for (Py_ssize_t i = 0; i < n; i++)                                                                             \
            values[i] |= (u##W)((u##W)bytes[i] << shift);                                                              \
    }                                                                                                                  \
    /* Find the tops of a block of values; return how many are large. */                                               \
    VECTORS static int tops_of_##W(const u##W *values, u1 *tops, Py_ssize_t n, int shift, u##W most)                   \
    {                                                                                                                  \
        uint16_t marks = 0;                                                                                            \
        for (Py_ssize_t i = 0; i < n; i++) {                                                                           \
            u##W top = (u##W)(values[i] >> shift);                                                                     \
            marks += top >= most;                                                                                      \
            tops[i] = (u1)(top < most ? top : most);                                                                   \
        }                                                                                                              \
        return (int)marks;                                                                                             \
    }                                                                                                                  \
    static Py_ssize_t pack_##W(const u##W *values, int low_bits, int top_bits, u1 *low, u1 *top, u##W *large,          \
                               Py_ssize_t n)                                                                           \
    {                                                                                                                  \
        u1 bytes[BLOCK];                                                                                               \
        u##W *end = large, most = (u##W)((1 << top_bits) - 1);                                                         \
        for (Py_ssize_t start = 0; start < n; start += BLOCK) {                                                        \
            Py_ssize_t count = n - start < BLOCK ? n - start : BLOCK;                                                  \
            const u##W *part = values + start;                                                                         \
            u1 *place = low;                                                                                           \
            int shift = 0;                                                                                             \
            for (; low_bits - shift >= 8; shift += 8, place += n)                                                      \
                byte_of_##W(part, place + start, count, shift);                                                        \
            for (int bits = 4; bits; bits >>= 1)                                                                       \
                if (low_bits & bits) {                                                                                 \
                    byte_of_##W(part, bytes, count, shift);                                                            \
                    together(bytes, place + start * bits / 8, count, bits);                                            \
                    place += (n * bits + 7) / 8;                                                                       \
                    shift += bits;                                                                                     \
                }                                                                                                      \
            int marks = tops_of_##W(part, bytes, count, low_bits, most);                                               \
            together(bytes, top + start * top_bits / 8, count, top_bits);                                              \
            if (marks < FEW)                                                                                           \
                for (const u1 *at = bytes; marks && (at = memchr(at, most, bytes + count - at)); at++)                 \
                    *end++ = (u##W)((u##W)(part[at - bytes] >> low_bits) - most);                                      \
            else                                                                                                       \
                for (Py_ssize_t i = 0; i < count; i++) { /* always written, and kept only if it is large */            \
                    u##W rest = (u##W)(part[i] >> low_bits);                                                           \
                    if (end < large + n)                                                                               \
                        *end = (u##W)(rest - most);                                                                    \
                    end += rest >= most;                                                                               \
                }                                                                                                      \
        }                                                                                                              \
        return end - large;                                                                                            \
    }                                                                                                                  \
    VECTORS static int widen_##W(const u1 *bytes, u##W *out, Py_ssize_t n, int shift, u1 most)                         \
    {                                                                                                                  \
        uint16_t marks = 0;                                                                                            \
        for (Py_ssize_t i = 0; i < n; i++) {                                                                           \
            marks += bytes[i] == most;                                                                                 \
            out[i] = (u##W)((u##W)bytes[i] << shift);                                                                  \
        }                                                                                                              \
        return marks;                                                                                                  \
    }                                                                                                                  \
    static Py_ssize_t unpack_##W(const u1 *low, const u1 *top, const u##W *large, Py_ssize_t large_count,              \
                                 int low_bits, int top_bits, u##W *out, Py_ssize_t n)                                  \
    {                                                                                                                  \
        u1 bytes[BLOCK], most = (u1)((1 << top_bits) - 1);                                                             \
        Py_ssize_t marks = 0;                                                                                          \
        for (Py_ssize_t start = 0; start < n; start += BLOCK) {                                                        \
            Py_ssize_t count = n - start < BLOCK ? n - start : BLOCK;                                                  \
            u##W *part = out + start;                                                                                  \
            apart(top + start * top_bits / 8, bytes, count, top_bits);                                                 \
            int left = widen_##W(bytes, part, count, low_bits, most), is_few = left < FEW;                             \
            for (const u1 *at = bytes; left; at++) {                                                                   \
                if (is_few)                                                                                            \
                    at = memchr(at, most, bytes + count - at);                                                         \
                else if (*at != most)                                                                                  \
                    continue;                                                                                          \
                u##W more = marks < large_count ? large[marks] : 0;                                                    \
                part[at - bytes] = (u##W)((u##W)(most + more) << low_bits);                                            \
                marks++, left--;                                                                                       \
            }                                                                                                          \
            const u1 *place = low;                                                                                     \
            int shift = 0;                                                                                             \
            for (; low_bits - shift >= 8; shift += 8, place += n)                                                      \
                or_byte_##W(part, place + start, count, shift);                                                        \
            for (int bits = 4; bits; bits >>= 1)                                                                       \
                if (low_bits & bits) {                                                                                 \
                    apart(place + start * bits / 8, bytes, count, bits);                                               \
                    or_byte_##W(part, bytes, count, shift);                                                            \
                    place += (n * bits + 7) / 8;                                                                       \
                    shift += bits;                                                                                     \
                }                                                                                                      \
        }                                                                                                              \
        return marks;                                                                                                  \
    }                                                                                                                  \
    static void split_##W(const u##W *values, u1 *planes, Py_ssize_t n, int is_float)                                  \
    {                                                                                                                  \
        u##W block[BLOCK];                                                                                             \
        for (Py_ssize_t start = 0; start < n; start += BLOCK) {                                                        \
            Py_ssize_t count = n - start < BLOCK ? n - start : BLOCK;                                                  \
            const u##W *part = values + start;                                                                         \
            if (is_float) {                                                                                            \
                rotate_##W(part, block, count);                                                                        \
                part = block;                                                                                          \
            }                                                                                                          \
            for (int number = 0; number < W; number++)                                                                 \
                byte_of_##W(part, planes + number * n + start, count, 8 * number);                                     \
        }                                                                                                              \
    }

#define ROTATIONS(W)                                                                                                   \
    VECTORS static void rotate_##W(const u##W *values, u##W *out, Py_ssize_t n)                                        \
    {                                                                                                                  \
        for (Py_ssize_t i = 0; i < n; i++)                                                                             \
            out[i] = ROTATED(W, values[i]);                                                                            \
    }

/* Put values of so many bits into bytes, the first into the lowest bits; bits above these are not looked at. */
VECTORS static void together(const u1 *values, u1 *out, Py_ssize_t n, int bits)
{
    Py_ssize_t whole = n * bits / 8, i;
    if (bits == 8)
        memcpy(out, values, (size_t)n);
    else if (bits == 4)
        for (i = 0; i < whole; i++)
            out[i] = (u1)((values[2 * i] & 15) | values[2 * i + 1] << 4);
    else if (bits == 2)
        for (i = 0; i < whole; i++)
            out[i] = (u1)((values[4 * i] & 3) | (values[4 * i + 1] & 3) << 2 | (values[4 * i + 2] & 3) << 4 |
                          values[4 * i + 3] << 6);
    else
        for (i = 0; i < whole; i++) {
            u8 eight;
            memcpy(&eight, values + 8 * i, 8);
            /* the lowest bit of each byte goes to the highest byte: each at a place of its own */
            out[i] = (u1)(((eight & 0x0101010101010101) * 0x0102040810204080) >> 56);
        }
    int rest = (int)(n * bits % 8);
    if (rest) {
        u1 last = 0;
        for (int at = 0; at < rest; at += bits)
            last |= (u1)((values[whole * 8 / bits + at / bits] & ((1 << bits) - 1)) << at);
        out[whole] = last;
    }
}

VECTORS static void apart(const u1 *packed, u1 *out, Py_ssize_t n, int bits)
{
    Py_ssize_t whole = n * bits / 8, i;
    if (bits == 8)
        memcpy(out, packed, (size_t)n);
    else if (bits == 4)
        for (i = 0; i < whole; i++) {
            out[2 * i] = packed[i] & 15;
            out[2 * i + 1] = packed[i] >> 4;
        }
    else if (bits == 2)
        for (i = 0; i < whole; i++) {
            u4 four = packed[i];
            four = (four | four << 12) & 0x000F000F;
            four = (four | four << 6) & 0x03030303;
            memcpy(out + 4 * i, &four, 4);
        }
    else
        for (i = 0; i < whole; i++) {
            /* in byte k of the copies bit k is kept, and brought down to the lowest */
            u8 eight = (packed[i] * (u8)0x0101010101010101) & 0x8040201008040201;
            eight = ((eight + 0x00406070787C7E7F) >> 7) & 0x0101010101010101;
            memcpy(out + 8 * i, &eight, 8);
        }
    for (i = whole * 8 / bits; i < n; i++)
        out[i] = (u1)(packed[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1));
}

ROTATIONS(1)
ROTATIONS(2)
ROTATIONS(4)
ROTATIONS(8)
SHARED_LOOPS(1)
SHARED_LOOPS(2)
SHARED_LOOPS(4)
SHARED_LOOPS(8)

/* With the number of planes known, all of them are read in one loop. */
#define JOIN(W, ALL)                                                                                                   \
    VECTORS static void join_##W(const u1 *const restrict *planes, u##W *restrict out, Py_ssize_t n, int is_float)     \
    {                                                                                                                  \
        if (is_float)                                                                                                  \
            for (Py_ssize_t i = 0; i < n; i++) {                                                                       \
                u##W v = (u##W)(ALL);                                                                                  \
                out[i] = ROTATED_BACK(W, v);                                                                           \
            }                                                                                                          \
        else                                                                                                           \
            for (Py_ssize_t i = 0; i < n; i++)                                                                         \
                out[i] = (u##W)(ALL);                                                                                  \
    }
#define FROM(number, type) ((type)planes[number][i] << (8 * number))
#define FOUR(type) (FROM(0, type) | FROM(1, type) | FROM(2, type) | FROM(3, type))
JOIN(1, planes[0][i])
JOIN(2, FROM(0, u2) | FROM(1, u2))
JOIN(4, FOUR(u4))
JOIN(8, FOUR(u8) | FROM(4, u8) | FROM(5, u8) | FROM(6, u8) | FROM(7, u8))

/* --- the functions of the module --- */

static PyObject *split(PyObject *module, PyObject *args)
{
    PyObject *objects[2];
    Py_buffer views[2] = {{0}};
    int is_float;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOp:split", &objects[0], &objects[1], &is_float))
        return NULL;
    if (get_all(objects, views, "eB") < 0)
        return refused(views, 2, NULL);
    if (views[0].len != views[1].len)
        return refused(views, 2, WRONG_SIZES);
    Py_BEGIN_ALLOW_THREADS
    FOR_WIDTH(views[0].itemsize, split, views[0].buf, views[1].buf, length(&views[0]), is_float)
    Py_END_ALLOW_THREADS
    release(views, 2);
    Py_RETURN_NONE;
}

static PyObject *join(PyObject *module, PyObject *args)
{
    PyObject *planes, *out, *items;
    Py_buffer views[9] = {{0}};
    const u1 *data[8];
    int is_float;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOp:join", &planes, &out, &is_float))
        return NULL;
    if (get(out, &views[8], 1, 0) < 0)
        return NULL;
    items = PySequence_Tuple(planes); /* of our own: asking for a buffer may run code that changes a list */
    if (!items)
        return refused(views, 9, NULL);
    Py_ssize_t width = views[8].itemsize, count = length(&views[8]);
    int fits = PyTuple_GET_SIZE(items) == width;
    for (Py_ssize_t number = 0; fits && number < width; number++) {
        if (get(PyTuple_GET_ITEM(items, number), &views[number], 0, 1) < 0) {
            Py_DECREF(items);
            return refused(views, 9, NULL);
        }
        data[number] = views[number].buf;
        fits = views[number].len == count;
    }
    Py_DECREF(items);
    if (!fits)
        return refused(views, 9, WRONG_SIZES);
    Py_BEGIN_ALLOW_THREADS
    FOR_WIDTH(width, join, data, views[8].buf, count, is_float)
    Py_END_ALLOW_THREADS
    release(views, 9);
    Py_RETURN_NONE;
}

/* How far an element must be shifted for its key to be the lowest byte. */
static int key_shift(Py_ssize_t width, int is_float)
{
    return width == 1 ? 0 : 8 * (int)width - 8 - (is_float ? 1 : 0);
}

static PyObject *key_counts(PyObject *module, PyObject *args)
{
    PyObject *objects[2];
    Py_buffer views[2] = {{0}};
    int is_float;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOp:key_counts", &objects[0], &objects[1], &is_float))
        return NULL;
    if (get_all(objects, views, "eQ") < 0)
        return refused(views, 2, NULL);
    if (length(&views[1]) != KEYS || length(&views[0]) > INT32_MAX)
        return refused(views, 2, WRONG_SIZES);
    Py_BEGIN_ALLOW_THREADS
    FOR_WIDTH(views[0].itemsize, key_counts, views[0].buf, views[1].buf, length(&views[0]),
              key_shift(views[0].itemsize, is_float))
    Py_END_ALLOW_THREADS
    release(views, 2);
    Py_RETURN_NONE;
}

/* Take groups and their starts; tell whether these can be places among n elements, and every key has a group. */
static int take_groups(const Py_buffer *numbers, const Py_buffer *starts, Py_ssize_t n, struct groups *groups)
{
    const i8 *first = starts->buf;
    groups->numbers = numbers->buf;
    groups->count = (int)length(starts);
    groups->total = (u4)n;
    for (int key = 0; key < KEYS; key++)
        if (groups->numbers[key] >= groups->count)
            return 0;
    for (int group = 0; group < groups->count; group++) {
        if (first[group] < 0 || first[group] > n)
            return 0;
        groups->next[group] = (u4)first[group];
        groups->firsts[group] = KEYS - 1;
        groups->lasts[group] = 0;
    }
    groups->are_runs = groups->numbers[0] == 0 && groups->numbers[KEYS - 1] == groups->count - 1;
    for (int key = 0; key < KEYS; key++) {
        int group = groups->numbers[key];
        groups->are_runs &= !key || group == groups->numbers[key - 1] || group == groups->numbers[key - 1] + 1;
        if (groups->firsts[group] > groups->lasts[group])
            groups->firsts[group] = (u1)key;
        groups->lasts[group] = (u1)key;
    }
    return groups->count > 1 || !groups->next[0];
}

/* `differences` and `sums` differ in which of two arrays is sorted by groups: the last one, or the first one. */
static PyObject *by_groups(PyObject *args, int is_sum)
{
    PyObject *objects[5];
    Py_buffer views[5] = {{0}};
    struct groups groups;
    int is_float, fits = 1;
    if (!PyArg_ParseTuple(args, is_sum ? "OOOOOp:sums" : "OOOOOp:differences", &objects[0], &objects[1], &objects[2],
                          &objects[3], &objects[4], &is_float))
        return NULL;
    if (get_all(objects, views, "eebqE") < 0)
        return refused(views, 5, NULL);
    Py_ssize_t width = views[0].itemsize, n = length(&views[0]), group_count = length(&views[3]);
    if (views[1].itemsize != width || views[4].itemsize != width || length(&views[1]) != n || length(&views[4]) != n ||
        views[2].len != KEYS || group_count < 1 || group_count > KEYS || n > INT32_MAX)
        return refused(views, 5, WRONG_SIZES);
    int shift = key_shift(width, is_float);
    if (!take_groups(&views[2], &views[3], n, &groups))
        return refused(views, 5, "groups that do not fit");
    Py_BEGIN_ALLOW_THREADS
    if (is_sum) {
        FOR_WIDTH(width, fits = sums, views[0].buf, views[1].buf, &groups, views[4].buf, n, is_float, shift)
    } else {
        FOR_WIDTH(width, fits = differences, views[0].buf, views[1].buf, &groups, views[4].buf, n, is_float, shift)
    }
    Py_END_ALLOW_THREADS
    if (!fits)
        return refused(views, 5, "groups that do not fit");
    release(views, 5);
    Py_RETURN_NONE;
}

static PyObject *differences(PyObject *module, PyObject *args)
{
    (void)module;
    return by_groups(args, 0);
}

static PyObject *sums(PyObject *module, PyObject *args)
{
    (void)module;
    return by_groups(args, 1);
}

static PyObject *measure(PyObject *module, PyObject *args)
{
    PyObject *object;
    Py_buffer view = {0};
    Py_ssize_t step;
    i8 lengths = 0, small = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "On:measure", &object, &step))
        return NULL;
    if (get(object, &view, 0, 0) < 0)
        return NULL;
    if (step < 1 || step > INT32_MAX)
        return refused(&view, 1, "a step must be at least 1");
    Py_BEGIN_ALLOW_THREADS
    FOR_WIDTH(view.itemsize, measure, view.buf, length(&view), step, &lengths, &small)
    Py_END_ALLOW_THREADS
    release(&view, 1);
    return Py_BuildValue("LL", (long long)lengths, (long long)small);
}

/* Tell whether values of such a width can be packed so, and the sizes of their low bits and tops fit. */
static int packs(Py_ssize_t width, Py_ssize_t n, int low_bits, int top_bits, Py_ssize_t low_size, Py_ssize_t top_size)
{
    if (low_bits < 0 || low_bits >= 8 * width || !(top_bits == 1 || top_bits == 2 || top_bits == 4 || top_bits == 8))
        return 0;
    Py_ssize_t size = low_bits / 8 * n;
    for (int bits = 4; bits; bits >>= 1)
        size += low_bits & bits ? (n * bits + 7) / 8 : 0;
    return low_size == size && top_size == (n * top_bits + 7) / 8;
}

static PyObject *pack(PyObject *module, PyObject *args)
{
    PyObject *objects[4];
    Py_buffer views[4] = {{0}};
    int low_bits, top_bits;
    Py_ssize_t large_count = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OiiOOO:pack",
                          &objects[0], &low_bits, &top_bits, &objects[1], &objects[2], &objects[3]))
        return NULL;
    if (get_all(objects, views, "eBBE") < 0)
        return refused(views, 4, NULL);
    Py_ssize_t width = views[0].itemsize, n = length(&views[0]);
    if (views[3].itemsize != width || length(&views[3]) < n ||
        !packs(width, n, low_bits, top_bits, views[1].len, views[2].len))
        return refused(views, 4, WRONG_SIZES);
    Py_BEGIN_ALLOW_THREADS
    FOR_WIDTH(width, large_count = pack, views[0].buf, low_bits, top_bits, views[1].buf, views[2].buf, views[3].buf, n)
    Py_END_ALLOW_THREADS
    release(views, 4);
    return PyLong_FromSsize_t(large_count);
}

static PyObject *unpack(PyObject *module, PyObject *args)
{
    PyObject *objects[4];
    Py_buffer views[4] = {{0}};
    int low_bits, top_bits;
    Py_ssize_t marks = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOiiO:unpack",
                          &objects[0], &objects[1], &objects[2], &low_bits, &top_bits, &objects[3]))
        return NULL;
    if (get_all(objects, views, "bbeE") < 0)
        return refused(views, 4, NULL);
    Py_ssize_t width = views[3].itemsize, n = length(&views[3]);
    if (views[2].itemsize != width || !packs(width, n, low_bits, top_bits, views[0].len, views[1].len))
        return refused(views, 4, WRONG_SIZES);
    Py_BEGIN_ALLOW_THREADS
    FOR_WIDTH(width, marks = unpack, views[0].buf, views[1].buf, views[2].buf, length(&views[2]), low_bits, top_bits,
              views[3].buf, n)
    Py_END_ALLOW_THREADS
    release(views, 4);
    return PyLong_FromSsize_t(marks);
}

static PyMethodDef methods[] = {
    {"split", split, METH_VARARGS, "split(values, planes, is_float): see planes.split"},
    {"join", join, METH_VARARGS, "join(planes, out, is_float): see planes.join"},
    {"key_counts", key_counts, METH_VARARGS, "key_counts(base, counts, is_float): see planes.key_counts"},
    {"differences", differences, METH_VARARGS,
     "differences(values, base, groups, starts, out, is_float): see planes.differences"},
    {"sums", sums, METH_VARARGS, "sums(found, base, groups, starts, out, is_float): see planes.sums"},
    {"measure", measure, METH_VARARGS, "measure(values, step): see planes.measure"},
    {"pack", pack, METH_VARARGS, "pack(values, low_bits, top_bits, low, top, large): see planes.pack"},
    {"unpack", unpack, METH_VARARGS, "unpack(low, top, large, low_bits, top_bits, out): see planes.unpack"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_kernels",
    .m_doc = "Loops over elements, compiled; see planes.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    prepare_eights();
    return PyModuleDef_Init(&definition);
}
