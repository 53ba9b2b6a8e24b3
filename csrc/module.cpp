// Makes the operator library importable as ssgrl_fast._C: loading it registers the operators, the module itself is
// empty.
//
// Built for Python's limited API, so that one build serves every Python from 3.10 on.

#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT,
      "_C",
      "The compiled operators; see torch.ops.ssgrl_fast.",
      -1,
      nullptr,
      nullptr,
      nullptr,
      nullptr,
      nullptr};
  return PyModule_Create(&definition);
}
