// Python binding: addresses as integers, lengths, dtypes. No torch, so that one build serves every torch.
#include "updater.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace {

using namespace lohan::adam;

void update(Updater &updater, std::uintptr_t master, std::uintptr_t exp_avg, std::uintptr_t exp_avg_sq,
            std::uintptr_t gradient, DType gradient_dtype, std::uintptr_t new_master, std::uintptr_t new_exp_avg,
            std::uintptr_t new_exp_avg_sq, std::uintptr_t weights, DType weights_dtype, std::size_t length,
            std::int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
            double gradient_factor) {
  Slice slice{};
  slice.master = reinterpret_cast<const float *>(master);
  slice.exp_avg = reinterpret_cast<const float *>(exp_avg);
  slice.exp_avg_sq = reinterpret_cast<const float *>(exp_avg_sq);
  slice.gradient = reinterpret_cast<const void *>(gradient);
  slice.new_master = reinterpret_cast<float *>(new_master);
  slice.new_exp_avg = reinterpret_cast<float *>(new_exp_avg);
  slice.new_exp_avg_sq = reinterpret_cast<float *>(new_exp_avg_sq);
  slice.weights = reinterpret_cast<void *>(weights);
  slice.gradient_dtype = gradient_dtype;
  slice.weights_dtype = weights_dtype;
  slice.length = length;
  updater.update(slice, Hyperparameters{step, lr, beta1, beta2, eps, weight_decay, gradient_factor});
}

// For kernels elsewhere: the same single-precision scalars.
py::dict coefficients(std::int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
                      double gradient_factor) {
  const Coefficients c = Coefficients::of(Hyperparameters{step, lr, beta1, beta2, eps, weight_decay, gradient_factor});
  return py::dict(py::arg("gradient_factor") = c.gradient_factor, py::arg("decay") = c.decay,
                  py::arg("lerp_weight") = c.lerp_weight, py::arg("beta2") = c.beta2,
                  py::arg("one_minus_beta2") = c.one_minus_beta2,
                  py::arg("root_bias_correction2") = c.root_bias_correction2, py::arg("eps") = c.eps,
                  py::arg("negative_step_size") = c.negative_step_size,
                  py::arg("lerp_from_gradient") = c.lerp_from_gradient);
}

std::vector<std::string> supported_path_names() {
  std::vector<std::string> names;
  for (const Path path : supported_paths()) {
    names.emplace_back(name_of(path));
  }
  return names;
}

} // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "AdamW in C++: one fused pass over a chunk of flat states.";
  module.def("supported_paths", &supported_path_names, "SIMD paths of this build and processor, fastest first.");

  module.def("coefficients", &coefficients, py::kw_only(), py::arg("step"), py::arg("lr"), py::arg("beta1"),
             py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("gradient_factor"),
             "The scalars of a step as the update uses them: derived in double, rounded once to single precision.");

  py::enum_<DType>(module, "DType").value("FLOAT32", DType::float32).value("BFLOAT16", DType::bfloat16);

  py::class_<Updater>(module, "Updater")
      .def(py::init<const std::string &, unsigned>(), py::kw_only(), py::arg("simd"), py::arg("threads"))
      .def_property_readonly("path", [](const Updater &updater) { return name_of(updater.path()); })
      .def_property_readonly("threads", &Updater::threads)
      .def("update", &update, py::kw_only(), py::arg("master"), py::arg("exp_avg"), py::arg("exp_avg_sq"),
           py::arg("gradient"), py::arg("gradient_dtype"), py::arg("new_master"), py::arg("new_exp_avg"),
           py::arg("new_exp_avg_sq"), py::arg("weights"), py::arg("weights_dtype"), py::arg("length"), py::arg("step"),
           py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
           py::arg("gradient_factor"), py::call_guard<py::gil_scoped_release>(),
           "Update `length` parameters; the arrays are addresses and stay the caller's. New states may take old ones' "
           "places.");
}
