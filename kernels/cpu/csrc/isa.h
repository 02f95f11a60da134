// Which kernels this machine can run.
#pragma once

#include <vector>

#include "kernels.h"

namespace flashlet {

// Best first; the portable ones are always there.
std::vector<const KernelTable*> available_kernels();

}  // namespace flashlet
