/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layout.c - prints where every field of the shared-memory ABI, the control messages and the public
 * structs lies, and every number that two sides must agree on.  tests/abi/check compares with
 * layout.golden: a difference is a broken ABI, or a new major.
 */
#include <stdio.h>

#include "client-lib/skvc.h"
#include "ipc/abi.h"
#include "ipc/ctl_msg.h"

#define TYPE(type)                                                              \
	printf("%-24s %zu bytes, aligned to %zu\n", #type, sizeof(struct type), \
	       _Alignof(struct type))
#define FIELD(type, name)                                                   \
	printf("%-24s %4zu %4zu  %s\n", #type, offsetof(struct type, name), \
	       sizeof(((struct type *)0)->name), #name)
#define NUMBER(name) printf("%s = %lld\n", #name, (long long)(name))

static void print_segment(void)
{
	TYPE(skvc_abi_header);
	FIELD(skvc_abi_header, magic);
	FIELD(skvc_abi_header, abi_major);
	FIELD(skvc_abi_header, abi_minor);
	FIELD(skvc_abi_header, header_bytes);
	FIELD(skvc_abi_header, entry_bytes);
	FIELD(skvc_abi_header, segment_bytes);
	FIELD(skvc_abi_header, features);
	FIELD(skvc_abi_header, sq_entries);
	FIELD(skvc_abi_header, cq_entries);
	FIELD(skvc_abi_header, sq_off);
	FIELD(skvc_abi_header, cq_off);
	FIELD(skvc_abi_header, leases_off);
	FIELD(skvc_abi_header, leases_count);
	FIELD(skvc_abi_header, session_id);
	FIELD(skvc_abi_header, args_off);
	FIELD(skvc_abi_header, args_bytes);
	FIELD(skvc_abi_header, daemon_state);
	FIELD(skvc_abi_header, end_reason);
	FIELD(skvc_abi_header, sq_tail);
	FIELD(skvc_abi_header, sq_head);
	FIELD(skvc_abi_header, cq_tail);
	FIELD(skvc_abi_header, cq_head);
	TYPE(skvc_abi_index);
	FIELD(skvc_abi_index, value);
	FIELD(skvc_abi_index, wait);
	TYPE(skvc_abi_lease_word);
	FIELD(skvc_abi_lease_word, generation);
	FIELD(skvc_abi_lease_word, blocks_hit);
	FIELD(skvc_abi_lease_word, blocks_ready);
	FIELD(skvc_abi_lease_word, blocks_lost);
	FIELD(skvc_abi_lease_word, deadline_ns);
}

static void print_entries(void)
{
	TYPE(skvc_abi_sqe);
	FIELD(skvc_abi_sqe, opcode);
	FIELD(skvc_abi_sqe, flags);
	FIELD(skvc_abi_sqe, ns);
	FIELD(skvc_abi_sqe, user_data);
	FIELD(skvc_abi_sqe, count);
	FIELD(skvc_abi_sqe, region);
	FIELD(skvc_abi_sqe, args_rel);
	FIELD(skvc_abi_sqe, args_bytes);
	FIELD(skvc_abi_sqe, lease);
	FIELD(skvc_abi_sqe, first);
	FIELD(skvc_abi_sqe, skip_tokens);
	FIELD(skvc_abi_sqe, result_rel);
	FIELD(skvc_abi_sqe, result_bytes);
	FIELD(skvc_abi_sqe, arg);
	TYPE(skvc_abi_cqe);
	FIELD(skvc_abi_cqe, user_data);
	FIELD(skvc_abi_cqe, res);
	FIELD(skvc_abi_cqe, reason);
	FIELD(skvc_abi_cqe, kind);
	FIELD(skvc_abi_cqe, count);
	FIELD(skvc_abi_cqe, pending);
	FIELD(skvc_abi_cqe, lease);
	FIELD(skvc_abi_cqe, raw_bytes);
	FIELD(skvc_abi_cqe, stored_bytes);
	FIELD(skvc_abi_cqe, elapsed_ns);
	TYPE(skvc_abi_key);
	FIELD(skvc_abi_key, group);
	FIELD(skvc_abi_key, len);
	TYPE(skvc_abi_segment);
	FIELD(skvc_abi_segment, layer);
	FIELD(skvc_abi_segment, heads);
	FIELD(skvc_abi_segment, head_dim);
	TYPE(skvc_abi_stride);
	FIELD(skvc_abi_stride, block_stride);
	FIELD(skvc_abi_stride, token_stride);
	FIELD(skvc_abi_stride, head_stride);
	TYPE(skvc_abi_gpu_stride);
	FIELD(skvc_abi_gpu_stride, memory);
	FIELD(skvc_abi_gpu_stride, reserved);
	FIELD(skvc_abi_gpu_stride, off);
	FIELD(skvc_abi_gpu_stride, block_stride);
	FIELD(skvc_abi_gpu_stride, token_stride);
	FIELD(skvc_abi_gpu_stride, head_stride);
}

static void print_messages(void)
{
	TYPE(ctl_header);
	TYPE(ctl_hello);
	FIELD(ctl_hello, abi_major);
	FIELD(ctl_hello, abi_minor_min);
	FIELD(ctl_hello, role);
	FIELD(ctl_hello, args_bytes);
	FIELD(ctl_hello, name);
	TYPE(ctl_welcome);
	FIELD(ctl_welcome, abi_major);
	FIELD(ctl_welcome, session_id);
	FIELD(ctl_welcome, segment_bytes);
	FIELD(ctl_welcome, arena_bytes_max);
	FIELD(ctl_welcome, lease_ttl_default_ns);
	TYPE(ctl_ns_open);
	FIELD(ctl_ns_open, model);
	FIELD(ctl_ns_open, salt);
	TYPE(ctl_ns);
	FIELD(ctl_ns, block_raw_bytes);
	TYPE(ctl_arena_new);
	TYPE(ctl_arena);
	FIELD(ctl_arena, bytes);
	TYPE(ctl_free);
	TYPE(ctl_region_host);
	FIELD(ctl_region_host, offset);
	TYPE(ctl_region_gpu);
	FIELD(ctl_region_gpu, ns);
	FIELD(ctl_region_gpu, blocks_count);
	FIELD(ctl_region_gpu, strides_count);
	FIELD(ctl_region_gpu, memory);
	FIELD(ctl_region_gpu, offset);
	TYPE(ctl_memory_gpu);
	FIELD(ctl_memory_gpu, memory_type);
	FIELD(ctl_memory_gpu, allocation_bytes);
	FIELD(ctl_memory_gpu, ipc_handle);
	FIELD(ctl_memory_gpu, device_uuid);
	TYPE(ctl_event_gpu);
	TYPE(ctl_ns_prefill);
	FIELD(ctl_ns_prefill, ns);
	FIELD(ctl_ns_prefill, tokens_per_s);
	TYPE(ctl_region);
	TYPE(ctl_error);
	FIELD(ctl_error, reason);
	FIELD(ctl_error, abi_major);
	FIELD(ctl_error, text);
}

static void print_public(void)
{
	TYPE(skvc_key);
	TYPE(skvc_segment);
	TYPE(skvc_geometry);
	/* NOLINTNEXTLINE(bugprone-sizeof-expression): the field is a pointer */
	FIELD(skvc_geometry, segments);
	TYPE(skvc_stride);
	TYPE(skvc_options);
	FIELD(skvc_options, log_user);
	FIELD(skvc_options, timeout_ns);
	TYPE(skvc_gpu_stride);
	FIELD(skvc_gpu_stride, memory);
	FIELD(skvc_gpu_stride, off);
	FIELD(skvc_gpu_stride, block_stride);
	FIELD(skvc_gpu_stride, token_stride);
	FIELD(skvc_gpu_stride, head_stride);
	TYPE(skvc_gpu_export);
	FIELD(skvc_gpu_export, type);
	FIELD(skvc_gpu_export, fd);
	FIELD(skvc_gpu_export, ipc_handle);
	FIELD(skvc_gpu_export, device_uuid);
	FIELD(skvc_gpu_export, allocation_bytes);
	FIELD(skvc_gpu_export, offset);
	TYPE(skvc_lookup);
	FIELD(skvc_lookup, lease_ttl_ns);
	TYPE(skvc_load);
	FIELD(skvc_load, ready_event);
	FIELD(skvc_load, done_event);
	FIELD(skvc_load, ret_bitmap);
	FIELD(skvc_load, ret_segments_ready);
	TYPE(skvc_store);
	FIELD(skvc_store, ready_event);
	FIELD(skvc_store, ret_bitmap);
	TYPE(skvc_completion);
	FIELD(skvc_completion, elapsed_ns);
	TYPE(skvc_lease_status);
}

#define REASON(id, word, text) printf("reason %d = %s\n", SKVC_ABI_REASON_##id, word);

int main(void)
{
	print_segment();
	print_entries();
	print_messages();
	print_public();
	NUMBER(SKVC_ABI_MAGIC);
	NUMBER(SKVC_ABI_MAJOR);
	NUMBER(SKVC_ABI_MINOR);
	NUMBER(SKVC_ABI_BLOCKS_MAX);
	NUMBER(SKVC_ABI_TOKENS_MAX);
	NUMBER(SKVC_ABI_ARGS_BYTES_MAX);
	NUMBER(SKVC_ABI_OP_NOP);
	NUMBER(SKVC_ABI_OP_LOOKUP);
	NUMBER(SKVC_ABI_OP_LOAD);
	NUMBER(SKVC_ABI_OP_STORE);
	NUMBER(SKVC_ABI_OP_RELEASE);
	NUMBER(SKVC_ABI_OP_TOUCH);
	NUMBER(SKVC_ABI_OP_DROP);
	NUMBER(SKVC_ABI_OP_PIN);
	NUMBER(SKVC_ABI_OP_ABORT);
	NUMBER(SKVC_ABI_SQE_TOKENS);
	NUMBER(SKVC_ABI_SQE_PARENT);
	NUMBER(SKVC_ABI_SQE_LAYER_PROGRESS);
	NUMBER(SKVC_ABI_CQE_DONE);
	NUMBER(SKVC_ABI_CQE_SOURCE_FREE);
	NUMBER(SKVC_ABI_DAEMON_OPEN);
	NUMBER(SKVC_ABI_DAEMON_CLOSED);
	NUMBER(CTL_MAGIC);
	NUMBER(CTL_HELLO);
	NUMBER(CTL_BYE);
	NUMBER(CTL_MEMORY_GPU);
	NUMBER(CTL_REGION_GPU);
	NUMBER(CTL_EVENT_GPU);
	NUMBER(CTL_NS_PREFILL);
	NUMBER(CTL_WELCOME);
	NUMBER(CTL_ERROR);
	SKVC_ABI_REASONS(REASON)
	return 0;
}
