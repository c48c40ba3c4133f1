// The Python module of one build. Arguments are addresses, sizes and strides that Python has checked, in the order in
// which the functions here read them; no torch header, and only the stable part of the Python interface.
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <new>
#include <type_traits>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "attention.h"
#include "clusters.h"
#include "feed_forward.h"
#include "k_means.h"
#include "rows.h"
#include "step.h"

#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

// Takes the arguments one after the other, those in a tuple as if they stood there without it.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t count) : values_(values), count_(count) {}

  int64_t integer() {
    PyObject* value = next();
    missing_ |= !value;
    return value ? PyLong_AsLongLong(value) : 0;
  }
  double number() {
    PyObject* value = next();
    missing_ |= !value;
    return value ? PyFloat_AsDouble(value) : 0;
  }
  template <typename T>
  T* address() {
    return reinterpret_cast<T*>(static_cast<intptr_t>(integer()));
  }
  Strided strided() {
    Strided s;
    s.data = address<const char>();
    s.batch = integer(), s.head = integer(), s.row = integer();
    return s;
  }
  // Whether all were there, no more, and of the right kind; sets a Python error otherwise.
  bool complete() {
    if (PyErr_Occurred()) return false;
    if (!missing_ && !next()) return true;
    PyErr_SetString(PyExc_TypeError, missing_ ? "too few arguments" : "too many arguments");
    return false;
  }

 private:
  // nullptr after the last one.
  PyObject* next() {
    if (inside_ < size_) return PyTuple_GetItem(values_[at_ - 1], inside_++);
    if (at_ == count_) return nullptr;
    PyObject* value = values_[at_++];
    if (!PyTuple_Check(value)) return value;
    inside_ = 0, size_ = PyTuple_Size(value);
    return next();
  }
  PyObject* const* values_;
  Py_ssize_t count_, at_ = 0;
  Py_ssize_t inside_ = 0, size_ = 0;  // of the tuple that is read
  bool missing_ = false;
};

Attention read_attention(Arguments& in) {
  Attention a;
  a.batches = in.integer(), a.heads = in.integer(), a.groups = in.integer();
  a.queries = in.integer(), a.keys = in.integer(), a.width = in.integer(), a.value_width = in.integer();
  a.bf16 = in.integer();
  a.query = in.strided(), a.key = in.strided(), a.value = in.strided(), a.out = in.strided();
  a.scale = static_cast<float>(in.number()), a.softcap = static_cast<float>(in.number());
  a.bias = in.strided();
  a.sinks = in.address<const float>();
  a.first = in.address<const int64_t>(), a.last = in.address<const int64_t>(), a.range_batch = in.integer();
  a.k = in.integer(), a.share = in.integer(), a.share_of = in.integer();
  a.min_length = in.integer();
  a.compensation = static_cast<int>(in.integer()), a.mean_of_dropped = in.integer();
  a.placement = static_cast<int>(in.integer()), a.min_keep = in.integer();
  a.denominator = static_cast<int>(in.integer());
  a.log_lengths = in.address<const float>(), a.theta = in.address<const float>(), a.dropped = in.address<const float>();
  a.columns = in.integer(), a.shortest = in.integer(), a.longest = in.integer();
  a.value_sum = in.address<const double>();
  a.rounded.codes = in.address<int8_t>(), a.rounded.steps = in.address<float>();
  a.rounded.errors = in.address<float>(), a.rounded.filled = in.address<int64_t>(), a.rounded.panels = in.integer();
  a.kept = in.address<int32_t>(), a.flags = in.address<uint8_t>();
  a.v_rows = in.address<int32_t>(), a.k_rows = in.address<int32_t>();
  a.threads = static_cast<int>(in.integer());
  return a;
}

Clustering read_clustering(Arguments& in) {
  Clustering a;
  a.batches = in.integer(), a.heads = in.integer(), a.groups = in.integer();
  a.width = in.integer(), a.value_width = in.integer(), a.bf16 = in.integer();
  a.query = in.strided(), a.key = in.strided(), a.value = in.strided(), a.out = in.strided();
  a.scale = static_cast<float>(in.number()), a.softcap = static_cast<float>(in.number());
  a.positions = in.address<const int32_t>(), a.starts = in.address<const int64_t>();
  a.clusters = in.integer(), a.refined = in.integer(), a.iterations = in.integer(), a.training = in.integer();
  a.direction = in.address<const float>();
  a.assigned = in.address<int32_t>();
  a.threads = static_cast<int>(in.integer());
  return a;
}

FeedForward read_feed_forward(Arguments& in) {
  FeedForward f;
  f.tokens = in.integer(), f.d_ff = in.integer(), f.d_model = in.integer(), f.bf16 = in.integer();
  f.hidden.data = in.address<const char>(), f.hidden.row = in.integer();
  f.rows.data = in.address<const char>(), f.rows.row = in.integer();
  f.bias = in.address<const char>(), f.out = in.address<char>();
  f.k = in.integer(), f.threads = static_cast<int>(in.integer());
  return f;
}

// Reads a call and runs it as it is stored, without the GIL; a failed allocation becomes MemoryError. Returns None, or
// what the call says.
template <typename Call, Call read(Arguments&), auto run_float, auto run_bf16>
PyObject* run(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  const Call call = read(in);
  if (!in.complete()) return nullptr;
  constexpr bool kSays = std::is_same_v<decltype(run_float(call)), bool>;
  bool failed = false, said = false;
  PyThreadState* state = PyEval_SaveThread();
  try {
    if constexpr (kSays)
      said = call.bf16 ? run_bf16(call) : run_float(call);
    else
      call.bf16 ? run_bf16(call) : run_float(call);
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  PyEval_RestoreThread(state);
  if (failed) return PyErr_NoMemory();
  if (kSays) return PyBool_FromLong(said);
  Py_RETURN_NONE;
}

constexpr auto rows = run<Attention, read_attention, attend_rows<float>, attend_rows<uint16_t>>;
constexpr auto step = run<Attention, read_attention, attend_step<float>, attend_step<uint16_t>>;
constexpr auto k_means = run<Clustering, read_clustering, assign_clusters<float>, assign_clusters<uint16_t>>;
constexpr auto clusters = run<Clustering, read_clustering, attend_clusters<float>, attend_clusters<uint16_t>>;
constexpr auto project =
    run<FeedForward, read_feed_forward, feed_forward::project<float>, feed_forward::project<uint16_t>>;

PyObject* same_pieces(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  const char* pieces = in.address<const char>();
  const int64_t step = in.integer(), number = in.integer(), size = in.integer();
  const char* copy = in.address<const char>();
  if (!in.complete()) return nullptr;
  return PyBool_FromLong(feed_forward::same_pieces(pieces, step, number, size, copy));
}

// Asks for large pages in memory that nothing was written to yet: the system's clearing of small ones, one at a time,
// takes a tenth of the time of a long sequence.
PyObject* large_pages(PyObject*, PyObject* const* values, Py_ssize_t count) {
  Arguments in(values, count);
  const int64_t address = in.integer(), bytes = in.integer();
  if (!in.complete()) return nullptr;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kPage = 1 << 21;
  const int64_t first = (address + kPage - 1) / kPage * kPage, last = (address + bytes) / kPage * kPage;
  // Where it is refused, small pages do as well.
  if (last > first) madvise(reinterpret_cast<void*>(static_cast<intptr_t>(first)), last - first, MADV_HUGEPAGE);
#else
  static_cast<void>(address), static_cast<void>(bytes);
#endif
  Py_RETURN_NONE;
}

PyObject* lanes(PyObject*, PyObject*) { return PyLong_FromLong(simd::kLanes); }

// METH_FASTCALL functions have another type than the table's.
PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef kMethods[] = {
    {"rows", fast(rows), METH_FASTCALL, "Attention of many queries."},
    {"step", fast(step), METH_FASTCALL, "Attention of one query per sequence."},
    {"feed_forward", fast(project), METH_FASTCALL, "Down-projection of the largest activations."},
    {"same_pieces", fast(same_pieces), METH_FASTCALL, "Whether some memory is still what a copy of it says."},
    {"k_means", fast(k_means), METH_FASTCALL, "The cluster of every query."},
    {"clusters", fast(clusters), METH_FASTCALL, "Attention by clusters of queries."},
    {"large_pages", fast(large_pages), METH_FASTCALL, "Large pages for new memory."},
    {"lanes", lanes, METH_NOARGS, "Floats per vector."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT, STRINGIFY(MODULE_NAME), nullptr, 0, kMethods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC JOIN(PyInit_, MODULE_NAME)(void) { return PyModule_Create(&kModule); }
