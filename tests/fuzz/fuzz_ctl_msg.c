/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_ctl_msg.c - a control packet, as request and as answer: what passes has strings that end, counts
 * that fit the packet, and text that a terminal may show; what does not pass is explained.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/ctl_msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int condition)
{
	if (!condition)
		abort();
}

static void must_be_shown_safely(const uint8_t *text, size_t bytes)
{
	const uint8_t *end = memchr(text, '\0', bytes);

	must(end != NULL);
	for (; text < end; text++)
		must(*text >= 0x20 && *text != 0x7f);
}

static void check_request(const uint8_t *data, size_t size)
{
	struct ctl_hello hello;
	struct ctl_ns_open ns;
	struct ctl_region_host region;
	struct ctl_region_gpu gpu;
	struct ctl_memory_gpu memory;
	struct ctl_header h;

	memcpy(&h, data, sizeof(h));
	must(h.magic == CTL_MAGIC && h.bytes == size && size <= CTL_MSG_BYTES_MAX);
	switch (h.type) {
	case CTL_HELLO:
		must(size == sizeof(hello));
		memcpy(&hello, data, sizeof(hello));
		must_be_shown_safely(hello.name, sizeof(hello.name));
		must(hello.abi_major == SKVC_ABI_MAJOR && hello.sq_entries <= 4096);
		break;
	case CTL_NS_OPEN:
		memcpy(&ns, data, sizeof(ns));
		must(size == sizeof(ns) + (size_t)ns.segments_count * 8);
		must_be_shown_safely(ns.model, sizeof(ns.model));
		must(ns.model[0] && ns.segments_count && ns.block_tokens && ns.salt_bytes <= 64);
		break;
	case CTL_REGION_HOST:
		memcpy(&region, data, sizeof(region));
		must(size == sizeof(region) + (size_t)region.strides_count * 32);
		break;
	case CTL_REGION_GPU:
		memcpy(&gpu, data, sizeof(gpu));
		must(size == sizeof(gpu) + (size_t)gpu.strides_count * 40);
		must(gpu.ns && gpu.blocks_count && !gpu.memory == !!gpu.strides_count);
		for (uint32_t i = 0; i < gpu.strides_count; i++) {
			struct skvc_abi_gpu_stride stride;

			memcpy(&stride, data + sizeof(gpu) + i * sizeof(stride), sizeof(stride));
			must(stride.memory && !stride.reserved && !gpu.offset);
		}
		break;
	case CTL_MEMORY_GPU:
		must(size == sizeof(memory));
		memcpy(&memory, data, sizeof(memory));
		must((memory.memory_type == 1 || memory.memory_type == 2) && !memory.reserved);
		must(memory.allocation_bytes && memory.allocation_bytes <= INT64_MAX);
		break;
	default:
		must(h.type < CTL_REQUEST_COUNT);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint16_t reason = SKVC_ABI_REASON_NONE;
	char text[CTL_TEXT_BYTES] = { 0 };
	struct ctl_header h;

	if (!ctl_msg_check_request(data, size, &reason, text)) {
		must(reason == SKVC_ABI_REASON_NONE && !text[0]);
		check_request(data, size);
	} else {
		must(reason == SKVC_ABI_REASON_BAD_MESSAGE || reason == SKVC_ABI_REASON_VERSION);
		must(text[0] != '\0');
		must_be_shown_safely((const uint8_t *)text, sizeof(text));
	}
	if (size < sizeof(h))
		return 0;
	memcpy(&h, data, sizeof(h));
	if (!ctl_msg_check_answer(data, size, h.type, h.seq))
		must(h.type >= CTL_WELCOME && h.type <= CTL_ERROR && h.bytes == size);
	return 0;
}
