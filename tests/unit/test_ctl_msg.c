/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_ctl_msg.c - one good message of each type, every length around it, and each field out of bounds.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ipc/ctl_msg.h"

union message {
	struct ctl_header h;
	struct ctl_hello hello;
	struct ctl_ns_open ns_open;
	struct ctl_arena_new arena_new;
	struct ctl_free free;
	struct ctl_region_host region_host;
	struct ctl_memory_gpu memory_gpu;
	struct ctl_region_gpu region_gpu;
	struct ctl_event_gpu event_gpu;
	struct ctl_ns_prefill ns_prefill;
	struct ctl_welcome welcome;
	struct ctl_ns ns;
	struct ctl_arena arena;
	struct ctl_region region;
	struct ctl_error error;
	uint8_t bytes[1024];
};

static size_t good(uint16_t type, union message *m)
{
	size_t bytes = sizeof(m->h);

	memset(m, 0, sizeof(*m));
	switch (type) { /* flat switch */
	case CTL_HELLO:
		bytes = sizeof(m->hello);
		m->hello.abi_major = m->hello.abi_major_min = SKVC_ABI_MAJOR;
		m->hello.abi_minor = SKVC_ABI_MINOR;
		m->hello.sq_entries = 8;
		m->hello.args_bytes = 65536;
		memcpy(m->hello.name, "engine \xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 16);
		break;
	case CTL_NS_OPEN:
		bytes = sizeof(m->ns_open) + 2 * sizeof(struct skvc_abi_segment);
		m->ns_open.block_tokens = 16;
		m->ns_open.segments_count = 2;
		m->ns_open.salt_bytes = 64;
		memset(m->ns_open.model, 'm', 255);
		memset(m->ns_open.salt, 0xff, 64);
		m->ns_open.segments[0] = (struct skvc_abi_segment){ 1, 4, 0, 65535, 1 };
		m->ns_open.segments[1] = (struct skvc_abi_segment){ 3, 0, 65535, 1, 65535 };
		break;
	case CTL_ARENA_NEW:
		bytes = sizeof(m->arena_new);
		m->arena_new.bytes = 4096;
		break;
	case CTL_ARENA_FREE:
	case CTL_REGION_FREE:
		bytes = sizeof(m->free);
		m->free.handle = 1;
		break;
	case CTL_REGION_HOST:
		bytes = sizeof(m->region_host) + 2 * sizeof(struct skvc_abi_stride);
		m->region_host.ns = m->region_host.arena = m->region_host.blocks_count = 1;
		m->region_host.strides_count = 2;
		break;
	case CTL_REGION_GPU:
		bytes = sizeof(m->region_gpu) + 2 * sizeof(struct skvc_abi_gpu_stride);
		m->region_gpu.ns = m->region_gpu.blocks_count = 1;
		m->region_gpu.strides_count = 2;
		m->region_gpu.strides[0] = (struct skvc_abi_gpu_stride){ 1, 0, 2, 3, 4, 5 };
		m->region_gpu.strides[1] =
			(struct skvc_abi_gpu_stride){ 9, 0, UINT64_MAX, 0, 0, 0 };
		break;
	case CTL_MEMORY_GPU:
		bytes = sizeof(m->memory_gpu);
		m->memory_gpu.memory_type = CTL_MEMORY_IPC_HANDLE;
		m->memory_gpu.allocation_bytes = 100;
		m->memory_gpu.ipc_handle[63] = 1;
		m->memory_gpu.device_uuid[15] = 1;
		break;
	case CTL_EVENT_GPU:
		bytes = sizeof(m->event_gpu);
		break;
	case CTL_NS_PREFILL:
		bytes = sizeof(m->ns_prefill);
		m->ns_prefill.ns = 1;
		m->ns_prefill.tokens_per_s = UINT64_MAX;
		break;
	default:
		break;
	}
	ctl_msg_init(&m->h, type, (uint32_t)bytes, 5);
	return bytes;
}

/* An exact-size heap copy: sanitizers see a read beyond it; and off by one, to prove no alignment. */
static int check(const union message *m, size_t bytes, uint16_t *reason, char *text)
{
	uint8_t *copy = malloc(bytes + 1);
	int r;

	assert_non_null(copy);
	memcpy(copy + 1, m, bytes < sizeof(*m) ? bytes : sizeof(*m));
	memset(text, 'x', CTL_TEXT_BYTES);
	*reason = SKVC_ABI_REASON_NONE;
	r = ctl_msg_check_request(copy + 1, bytes, reason, text);
	free(copy);
	if (!r) {
		assert_int_equal(*reason, SKVC_ABI_REASON_NONE); /* untouched */
		assert_int_equal(text[0], 'x');
	} else {
		assert_int_equal(r, -EPROTO);
		assert_non_null(memchr(text, '\0', CTL_TEXT_BYTES));
		assert_true(strlen(text) > 10 && !strchr(text, '\n'));
	}
	return r;
}

static void takes_good_messages_of_the_right_length(void **state)
{
	char text[CTL_TEXT_BYTES];
	union message m;
	uint16_t reason;

	(void)state;
	for (unsigned t = CTL_HELLO; t < CTL_REQUEST_COUNT; t++) {
		uint16_t type = (uint16_t)t;
		size_t bytes = good(type, &m);

		assert_int_equal(check(&m, bytes, &reason, text), 0);
		for (size_t other = 0; other < sizeof(m); other++) {
			if (other == bytes)
				continue;
			/* With the packet's length in the header, and with the old one. */
			assert_int_equal(check(&m, other, &reason, text), -EPROTO);
			m.h.bytes = (uint32_t)other;
			assert_int_equal(check(&m, other, &reason, text), -EPROTO);
			assert_int_equal(reason, SKVC_ABI_REASON_BAD_MESSAGE);
			m.h.bytes = (uint32_t)bytes;
		}
	}
}

static void refuses_bad_headers(void **state)
{
	char text[CTL_TEXT_BYTES];
	union message m;
	uint16_t reason;
	size_t bytes;

	(void)state;
	bytes = good(CTL_BYE, &m);
	m.h.magic++;
	assert_int_equal(check(&m, bytes, &reason, text), -EPROTO);
	(void)good(CTL_BYE, &m);
	m.h.reserved = 1;
	assert_int_equal(check(&m, bytes, &reason, text), -EPROTO);
	for (uint32_t type = 0; type < 65536; type++) {
		if (type >= CTL_HELLO && type < CTL_REQUEST_COUNT)
			continue;
		(void)good(CTL_BYE, &m);
		m.h.type = (uint16_t)type;
		assert_int_equal(check(&m, bytes, &reason, text), -EPROTO);
	}
}

#define REFUSES(msgtype, change, word)                                   \
	do {                                                             \
		size_t n_ = good(msgtype, &m);                           \
		change;                                                  \
		assert_int_equal(check(&m, n_, &reason, text), -EPROTO); \
		assert_int_equal(reason, SKVC_ABI_REASON_BAD_MESSAGE);   \
		if (!strstr(text, word))                                 \
			fail_msg("\"%s\" does not say %s", text, word);  \
	} while (0)

static void refuses_bad_hellos(void **state)
{
	char text[CTL_TEXT_BYTES];
	union message m;
	uint16_t reason;

	(void)state;
	REFUSES(CTL_HELLO, m.hello.role = 2, "role 2");
	REFUSES(CTL_HELLO, m.hello.sq_entries = 0, "sq_entries 0");
	REFUSES(CTL_HELLO, m.hello.sq_entries = 4, "sq_entries 4");
	REFUSES(CTL_HELLO, m.hello.sq_entries = 12, "sq_entries 12");
	REFUSES(CTL_HELLO, m.hello.sq_entries = 8192, "sq_entries 8192");
	REFUSES(CTL_HELLO, m.hello.args_bytes = 65537, "args_bytes");
	REFUSES(CTL_HELLO, m.hello.args_bytes = 61440, "args_bytes");
	REFUSES(CTL_HELLO, m.hello.args_bytes = 1ull << 32, "args_bytes");
	REFUSES(CTL_HELLO, memset(m.hello.name, 'x', 64), "terminated");
	REFUSES(CTL_HELLO, m.hello.name[40] = 1, "after its end");
	REFUSES(CTL_HELLO, m.hello.name[0] = 0x1b, "control");
	REFUSES(CTL_HELLO, m.hello.name[0] = 0x7f, "control");
	REFUSES(CTL_HELLO, memcpy(m.hello.name, "\xc2\x9b", 2), "control");
	REFUSES(CTL_HELLO, m.hello.name[0] = 0xff, "UTF-8");
	REFUSES(CTL_HELLO, m.hello.name[0] = 0x80, "UTF-8");
	REFUSES(CTL_HELLO, memcpy(m.hello.name, "\xc0\xaf", 2), "UTF-8");     /* overlong */
	REFUSES(CTL_HELLO, memcpy(m.hello.name, "\xe0\x80\xaf", 3), "UTF-8"); /* overlong */
	REFUSES(CTL_HELLO, memcpy(m.hello.name, "\xed\xa0\x80", 3), "UTF-8"); /* surrogate */
	REFUSES(CTL_HELLO, memcpy(m.hello.name, "\xf4\x90\x80\x80", 4), "UTF-8");
	REFUSES(CTL_HELLO, m.hello.name[15] = 0, "UTF-8"); /* cut off in a character */
}

static void refuses_other_majors_whatever_follows(void **state)
{
	char text[CTL_TEXT_BYTES];
	union message m;
	uint16_t reason;

	(void)state;
	for (size_t bytes = 24; bytes < 200; bytes++) {
		(void)good(CTL_HELLO, &m);
		memset(m.bytes + 24, 0xff, sizeof(m) - 24);
		m.hello.abi_major = 2;
		m.hello.abi_minor = 7;
		m.h.bytes = (uint32_t)bytes;
		assert_int_equal(check(&m, bytes, &reason, text), -EPROTO);
		assert_int_equal(reason, SKVC_ABI_REASON_VERSION);
		assert_non_null(strstr(text, "2.7"));
		assert_non_null(strstr(text, "1.2"));
	}
}

static void refuses_bad_namespaces(void **state)
{
	char text[CTL_TEXT_BYTES];
	union message m;
	uint16_t reason;

	(void)state;
	REFUSES(CTL_NS_OPEN, m.ns_open.block_tokens = 0, "block_tokens 0");
	REFUSES(CTL_NS_OPEN, m.ns_open.block_tokens = 1025, "block_tokens 1025");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments_count = 0, "segments_count 0");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments_count = 1025, "segments_count 1025");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments_count = 3, "bytes");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments_count = 0x20000002, "segments_count");
	REFUSES(CTL_NS_OPEN, m.ns_open.salt_bytes = 65, "salt_bytes 65");
	REFUSES(CTL_NS_OPEN, m.ns_open.salt_bytes = 63, "salt");
	REFUSES(CTL_NS_OPEN, m.ns_open.reserved = 1, "reserved");
	REFUSES(CTL_NS_OPEN, memset(m.ns_open.model, 0, 256), "model is empty");
	REFUSES(CTL_NS_OPEN, m.ns_open.model[255] = 'x', "model is not NUL");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments[1].kind = 4, "segment 1");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments[1].dtype = 5, "segment 1");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments[0].heads = 0, "segment 0");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments[0].head_dim = 0, "segment 0");
	REFUSES(CTL_NS_OPEN, m.ns_open.segments[0].head_dim = 2, "segment 0");
}

static void refuses_bad_memory(void **state)
{
	char text[CTL_TEXT_BYTES];
	union message m;
	uint16_t reason;

	(void)state;
	REFUSES(CTL_ARENA_NEW, m.arena_new.bytes = 0, "0 bytes");
	REFUSES(CTL_ARENA_NEW, m.arena_new.bytes = 4097, "4097");
	REFUSES(CTL_ARENA_NEW, m.arena_new.bytes = 1ull << 63, "ARENA_NEW");
	REFUSES(CTL_ARENA_FREE, m.free.handle = 0, "ARENA_FREE");
	REFUSES(CTL_REGION_FREE, m.free.reserved = 1, "REGION_FREE");
	REFUSES(CTL_REGION_HOST, m.region_host.ns = 0, "handle 0");
	REFUSES(CTL_REGION_HOST, m.region_host.arena = 0, "handle 0");
	REFUSES(CTL_REGION_HOST, m.region_host.blocks_count = 0, "0 blocks");
	REFUSES(CTL_REGION_HOST, m.region_host.strides_count = 1, "bytes");
	REFUSES(CTL_REGION_HOST, m.region_host.strides_count = 1025, "1025");
	REFUSES(CTL_REGION_HOST, m.region_host.strides_count = 0x8000002, "strides_count");
}

static void refuses_bad_prefill(void **state)
{
	char text[CTL_TEXT_BYTES];
	union message m;
	uint16_t reason;

	(void)state;
	REFUSES(CTL_NS_PREFILL, m.ns_prefill.ns = 0, "handle 0");
	REFUSES(CTL_NS_PREFILL, m.ns_prefill.reserved = 1, "reserved");
}

static void refuses_bad_gpu_memory(void **state)
{
	char text[CTL_TEXT_BYTES];
	union message m;
	uint16_t reason;

	(void)state;
	REFUSES(CTL_MEMORY_GPU, m.memory_gpu.memory_type = 0, "memory_type 0");
	REFUSES(CTL_MEMORY_GPU, m.memory_gpu.memory_type = 3, "memory_type 3");
	REFUSES(CTL_MEMORY_GPU, m.memory_gpu.reserved = 1, "reserved");
	REFUSES(CTL_MEMORY_GPU, m.memory_gpu.allocation_bytes = 0, "allocation of 0");
	REFUSES(CTL_MEMORY_GPU, m.memory_gpu.allocation_bytes = 1ull << 63, "cannot be");
	REFUSES(CTL_MEMORY_GPU, m.memory_gpu.memory_type = 2, "ipc_handle");
	REFUSES(CTL_REGION_GPU, m.region_gpu.ns = 0, "handle 0");
	REFUSES(CTL_REGION_GPU, m.region_gpu.blocks_count = 0, "0 blocks");
	REFUSES(CTL_REGION_GPU, m.region_gpu.strides_count = 1, "bytes");
	REFUSES(CTL_REGION_GPU, m.region_gpu.strides_count = 3, "bytes");
	REFUSES(CTL_REGION_GPU, m.region_gpu.strides_count = 1025, "1025");
	REFUSES(CTL_REGION_GPU, m.region_gpu.strides_count = 0x66666668, "strides_count");
	REFUSES(CTL_REGION_GPU, m.region_gpu.memory = 1, "packed form");
	REFUSES(CTL_REGION_GPU, m.region_gpu.offset = 1, "packed form");
	REFUSES(CTL_REGION_GPU, m.region_gpu.strides[1].memory = 0, "stride 1: handle 0");
	REFUSES(CTL_REGION_GPU, m.region_gpu.strides[0].reserved = 1, "stride 0: a reserved");
}

/* No strides: one allocation and an offset in it. */
static void takes_packed_gpu_regions(void **state)
{
	struct ctl_region_gpu *m;
	char text[CTL_TEXT_BYTES];
	union message u;
	uint16_t reason;
	size_t bytes = sizeof(*m);

	(void)state;
	(void)good(CTL_REGION_GPU, &u);
	m = &u.region_gpu;
	m->h.bytes = (uint32_t)bytes;
	m->strides_count = 0;
	assert_int_equal(check(&u, bytes, &reason, text), -EPROTO);
	assert_non_null(strstr(text, "handle 0"));
	m->memory = 7;
	assert_int_equal(check(&u, bytes, &reason, text), 0);
	m->offset = UINT64_MAX; /* whether it lies in the allocation is the daemon's to check */
	assert_int_equal(check(&u, bytes, &reason, text), 0);
	assert_int_equal(check(&u, bytes + 1, &reason, text), -EPROTO);
}

/* 1024 layers, each with an allocation of its own. */
static void takes_the_longest_gpu_region(void **state)
{
	size_t bytes = sizeof(struct ctl_region_gpu) +
		       CTL_SEGMENTS_MAX * sizeof(struct skvc_abi_gpu_stride);
	struct ctl_region_gpu *m = calloc(1, bytes);
	char text[CTL_TEXT_BYTES];
	uint16_t reason;

	(void)state;
	assert_non_null(m);
	ctl_msg_init(&m->h, CTL_REGION_GPU, (uint32_t)bytes, 1);
	m->ns = m->blocks_count = 1;
	m->strides_count = CTL_SEGMENTS_MAX;
	for (uint32_t i = 0; i < CTL_SEGMENTS_MAX; i++)
		m->strides[i].memory = i + 1;
	assert_int_equal(ctl_msg_check_request(m, bytes, &reason, text), 0);
	m->strides[CTL_SEGMENTS_MAX - 1].reserved = 1;
	assert_int_equal(ctl_msg_check_request(m, bytes, &reason, text), -EPROTO);
	assert_non_null(strstr(text, "stride 1023"));
	free(m);
}

static void versions_meet_both_ways(void **state)
{
	(void)state;
	assert_int_equal(ctl_msg_versions_meet(1, 0, 1, 0), 0);
	assert_int_equal(ctl_msg_versions_meet(1, 5, 1, 5), 0);
	assert_int_equal(ctl_msg_versions_meet(1, 4, 1, 5), -EPROTO);
	assert_int_equal(ctl_msg_versions_meet(2, 0, 1, 5), 0);
	assert_int_equal(ctl_msg_versions_meet(1, 9, 2, 0), -EPROTO);
}

struct answer_case {
	uint16_t type;
	size_t bytes;
};

static void checks_answers(void **state)
{
	static const struct answer_case cases[] = {
		{ CTL_WELCOME, sizeof(struct ctl_welcome) },
		{ CTL_NS, sizeof(struct ctl_ns) },
		{ CTL_ARENA, sizeof(struct ctl_arena) },
		{ CTL_REGION, sizeof(struct ctl_region) },
		{ CTL_OK, sizeof(struct ctl_ok) },
		{ CTL_ERROR, sizeof(struct ctl_error) },
	};
	union message m;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint16_t type = cases[i].type;

		memset(&m, 0, sizeof(m));
		ctl_msg_init(&m.h, type, (uint32_t)cases[i].bytes, 9);
		if (type == CTL_ERROR)
			m.error.res = -EPERM;
		else if (type != CTL_OK && type != CTL_WELCOME)
			m.region.handle = 1;
		assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes, type, 9), 0);
		assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes, CTL_NS, 9),
				 type == CTL_NS || type == CTL_ERROR ? 0 : -EPROTO);
		assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes, type, 8), -EPROTO);
		assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes - 1, type, 9), -EPROTO);
		m.h.bytes--;
		assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes - 1, type, 9), -EPROTO);
		m.h.bytes++;
		m.h.magic ^= 1;
		assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes, type, 9), -EPROTO);
		m.h.magic ^= 1;
		m.h.reserved = 1;
		assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes, type, 9), -EPROTO);
		m.h.reserved = 0;
		if (type == CTL_NS || type == CTL_ARENA || type == CTL_REGION) {
			m.region.handle = 0;
			assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes, type, 9),
					 -EPROTO);
		}
		if (type == CTL_ERROR) {
			m.error.res = 0;
			assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes, type, 9),
					 -EPROTO);
			m.error.res = -1;
			memset(m.error.text, 'x', sizeof(m.error.text));
			assert_int_equal(ctl_msg_check_answer(&m, cases[i].bytes, type, 9),
					 -EPROTO);
		}
	}
	assert_int_equal(ctl_msg_check_answer(&m, 0, CTL_OK, 0), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(takes_good_messages_of_the_right_length),
		cmocka_unit_test(refuses_bad_headers),
		cmocka_unit_test(refuses_bad_hellos),
		cmocka_unit_test(refuses_other_majors_whatever_follows),
		cmocka_unit_test(refuses_bad_namespaces),
		cmocka_unit_test(refuses_bad_memory),
		cmocka_unit_test(refuses_bad_prefill),
		cmocka_unit_test(refuses_bad_gpu_memory),
		cmocka_unit_test(takes_packed_gpu_regions),
		cmocka_unit_test(takes_the_longest_gpu_region),
		cmocka_unit_test(versions_meet_both_ways),
		cmocka_unit_test(checks_answers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
