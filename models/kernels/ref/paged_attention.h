// Plain twin of kernels/paged_attention.h: ATen alone, any dtype and device.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/paged_attention.h"

namespace cairn::kernels::ref {

// Twin of kernels::paged_store; slots, table and lengths lie on the CPU here too.
void paged_store(const KeyValuePages& pages, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots);

// Twin of kernels::paged_attention: every sequence's rows are gathered and attended to by ref::attention_decode.
at::Tensor paged_attention(const at::Tensor& q, const KeyValuePages& pages, const at::Tensor& table,
                           const at::Tensor& lengths, const AttentionOptions& options);

}  // namespace cairn::kernels::ref
