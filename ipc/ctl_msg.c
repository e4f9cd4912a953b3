/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl_msg.c - is this control packet well formed?  Shape and bounds only: what a message means, and
 * whether its handles exist, is the business of whoever called.  Pure; no allocation; fuzzed as it is.
 *
 * Packets are read through memcpy into aligned structs where they are not the caller's aligned buffer:
 * a packet pointer need not be aligned.
 */
#include "ipc/ctl_msg.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

void ctl_msg_init(struct ctl_header *h, uint16_t type, uint32_t bytes, uint32_t seq)
{
	h->magic = CTL_MAGIC;
	h->type = type;
	h->reserved = 0;
	h->bytes = bytes;
	h->seq = seq;
}

int ctl_msg_versions_meet(uint16_t major, uint16_t minor, uint16_t other_major_min,
			  uint16_t other_minor_min)
{
	if (major != other_major_min)
		return major > other_major_min ? 0 : -EPROTO;
	return minor >= other_minor_min ? 0 : -EPROTO;
}

static bool all_zero(const uint8_t *bytes, size_t count)
{
	uint8_t rest = 0;

	for (size_t i = 0; i < count; i++)
		rest |= bytes[i];
	return !rest;
}

/* Length of the UTF-8 sequence at s, 0 when it is none (overlong, surrogate, above U+10FFFF, cut off). */
static size_t utf8_length(const uint8_t *s, size_t left)
{
	uint32_t code;
	size_t n;

	if (s[0] < 0x80)
		return 1;
	if (s[0] >= 0xc2 && s[0] <= 0xdf)
		n = 2;
	else if (s[0] >= 0xe0 && s[0] <= 0xef)
		n = 3;
	else if (s[0] >= 0xf0 && s[0] <= 0xf4)
		n = 4;
	else
		return 0;
	if (n > left)
		return 0;
	code = s[0] & (0xffu >> (n + 1));
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (s[i] & 0x3fu);
	}
	if ((n == 3 && (code < 0x800 || (code >= 0xd800 && code <= 0xdfff))) ||
	    (n == 4 && (code < 0x10000 || code > 0x10ffff)))
		return 0;
	return n;
}

/*
 * A string field: printable UTF-8, NUL-terminated, the rest zero.  These strings end up on D-Bus, in the
 * journal and on terminals, which take neither invalid UTF-8 nor escape sequences kindly.
 */
static const char *string_fault(const uint8_t *field, size_t field_bytes, bool may_be_empty)
{
	size_t len = strnlen((const char *)field, field_bytes);
	size_t i = 0;

	if (len == field_bytes)
		return "is not NUL-terminated";
	if (!len && !may_be_empty)
		return "is empty";
	if (!all_zero(field + len, field_bytes - len))
		return "has bytes after its end";
	while (i < len) {
		size_t n = utf8_length(field + i, len - i);

		if (!n)
			return "is not UTF-8";
		if (field[i] < 0x20 || field[i] == 0x7f ||
		    (field[i] == 0xc2 && field[i + 1] < 0xa0))
			return "has control characters";
		i += n;
	}
	return NULL;
}

/* ---- requests; each function says what is wrong in `text` and returns false ---- */

struct fault {
	char *text;
	uint16_t *reason;
};

#define FAULT(f, ...) ((void)snprintf((f)->text, CTL_TEXT_BYTES, __VA_ARGS__), false)

static bool length_is(struct fault *f, const char *what, size_t packet_bytes, size_t want)
{
	if (packet_bytes == want)
		return true;
	return FAULT(f, "%s: %zu bytes where its contents need %zu", what, packet_bytes, want);
}

static bool check_hello(struct fault *f, const void *packet, size_t packet_bytes)
{
	struct ctl_hello m;
	const char *wrong;

	/* Header and the two version pairs are frozen; the rest belongs to a major. */
	if (packet_bytes < offsetof(struct ctl_hello, role))
		return FAULT(f, "HELLO: %zu bytes is too short for a version", packet_bytes);
	memset(&m, 0, sizeof(m));
	memcpy(&m, packet, packet_bytes < sizeof(m) ? packet_bytes : sizeof(m));
	if (m.abi_major != SKVC_ABI_MAJOR) {
		*f->reason = SKVC_ABI_REASON_VERSION;
		return FAULT(
			f,
			"client speaks version %u.%u, this daemon %u.%u: install matching versions",
			m.abi_major, m.abi_minor, SKVC_ABI_MAJOR, SKVC_ABI_MINOR);
	}
	if (!length_is(f, "HELLO", packet_bytes, sizeof(m)))
		return false;
	if (m.role > 1)
		return FAULT(f, "HELLO: role %u is neither 0 (worker) nor 1 (scheduler)", m.role);
	if (m.sq_entries < SKVC_ABI_SQ_ENTRIES_MIN || m.sq_entries > SKVC_ABI_SQ_ENTRIES_MAX ||
	    (m.sq_entries & (m.sq_entries - 1)))
		return FAULT(f, "HELLO: sq_entries %u is not a power of two in %u..%u",
			     m.sq_entries, SKVC_ABI_SQ_ENTRIES_MIN, SKVC_ABI_SQ_ENTRIES_MAX);
	if (m.args_bytes < SKVC_ABI_ARGS_AREA_BYTES_MIN ||
	    m.args_bytes > SKVC_ABI_ARGS_AREA_BYTES_MAX || m.args_bytes % SKVC_ABI_PAGE_BYTES)
		return FAULT(f, "HELLO: args_bytes %llu is not a multiple of %u in %u..%u",
			     (unsigned long long)m.args_bytes, SKVC_ABI_PAGE_BYTES,
			     SKVC_ABI_ARGS_AREA_BYTES_MIN, SKVC_ABI_ARGS_AREA_BYTES_MAX);
	wrong = string_fault(m.name, sizeof(m.name), true);
	if (wrong)
		return FAULT(f, "HELLO: name %s", wrong);
	return true;
}

static bool check_segment(struct fault *f, const struct skvc_abi_segment *s, uint32_t idx)
{
	if (s->kind > 3)
		return FAULT(f, "NS_OPEN: segment %u has unknown kind %u", idx, s->kind);
	if (s->dtype > 4)
		return FAULT(f, "NS_OPEN: segment %u has unknown dtype %u", idx, s->dtype);
	if (!s->heads || !s->head_dim ||
	    (uint32_t)s->heads * s->head_dim > SKVC_ABI_SEGMENT_ELEMENTS_MAX)
		return FAULT(f, "NS_OPEN: segment %u has %u heads of %u elements (product 1..%u)",
			     idx, s->heads, s->head_dim, SKVC_ABI_SEGMENT_ELEMENTS_MAX);
	return true;
}

static bool check_ns_open(struct fault *f, const void *packet, size_t packet_bytes)
{
	struct ctl_ns_open m;
	const char *wrong;

	if (packet_bytes < sizeof(m))
		return length_is(f, "NS_OPEN", packet_bytes, sizeof(m));
	memcpy(&m, packet, sizeof(m));
	if (!m.segments_count || m.segments_count > CTL_SEGMENTS_MAX)
		return FAULT(f, "NS_OPEN: segments_count %u is outside 1..%u", m.segments_count,
			     CTL_SEGMENTS_MAX);
	if (!length_is(f, "NS_OPEN", packet_bytes,
		       sizeof(m) + m.segments_count * sizeof(struct skvc_abi_segment)))
		return false;
	if (!m.block_tokens || m.block_tokens > SKVC_ABI_BLOCK_TOKENS_MAX)
		return FAULT(f, "NS_OPEN: block_tokens %u is outside 1..%u", m.block_tokens,
			     SKVC_ABI_BLOCK_TOKENS_MAX);
	if (m.reserved)
		return FAULT(f, "NS_OPEN: a reserved field is not zero");
	wrong = string_fault(m.model, sizeof(m.model), false);
	if (wrong)
		return FAULT(f, "NS_OPEN: model %s", wrong);
	if (m.salt_bytes > CTL_SALT_BYTES)
		return FAULT(f, "NS_OPEN: salt_bytes %u is above %u", m.salt_bytes, CTL_SALT_BYTES);
	if (!all_zero(m.salt + m.salt_bytes, CTL_SALT_BYTES - m.salt_bytes))
		return FAULT(f, "NS_OPEN: salt has bytes after its end");
	for (uint32_t i = 0; i < m.segments_count; i++) {
		struct skvc_abi_segment segment;

		memcpy(&segment, (const uint8_t *)packet + sizeof(m) + i * sizeof(segment),
		       sizeof(segment));
		if (!check_segment(f, &segment, i))
			return false;
	}
	return true;
}

static bool check_arena_new(struct fault *f, const void *packet, size_t packet_bytes)
{
	struct ctl_arena_new m;

	if (!length_is(f, "ARENA_NEW", packet_bytes, sizeof(m)))
		return false;
	memcpy(&m, packet, sizeof(m));
	if (!m.bytes || m.bytes % SKVC_ABI_PAGE_BYTES || m.bytes > INT64_MAX)
		return FAULT(f, "ARENA_NEW: %llu bytes is not a multiple of %u",
			     (unsigned long long)m.bytes, SKVC_ABI_PAGE_BYTES);
	return true;
}

static bool check_free(struct fault *f, const char *what, const void *packet, size_t packet_bytes)
{
	struct ctl_free m;

	if (!length_is(f, what, packet_bytes, sizeof(m)))
		return false;
	memcpy(&m, packet, sizeof(m));
	if (!m.handle)
		return FAULT(f, "%s: handle 0 is no handle", what);
	if (m.reserved)
		return FAULT(f, "%s: a reserved field is not zero", what);
	return true;
}

static bool check_region(struct fault *f, const char *what, size_t packet_bytes, size_t fixed_bytes,
			 size_t stride_bytes, uint32_t blocks_count, uint32_t strides_count)
{
	if (strides_count > CTL_SEGMENTS_MAX)
		return FAULT(f, "%s: strides_count %u is above %u", what, strides_count,
			     CTL_SEGMENTS_MAX);
	if (!blocks_count)
		return FAULT(f, "%s: a region of 0 blocks", what);
	return length_is(f, what, packet_bytes, fixed_bytes + strides_count * stride_bytes);
}

static bool check_region_host(struct fault *f, const void *packet, size_t packet_bytes)
{
	struct ctl_region_host m;

	if (packet_bytes < sizeof(m))
		return length_is(f, "REGION_HOST", packet_bytes, sizeof(m));
	memcpy(&m, packet, sizeof(m));
	if (!m.ns || !m.arena)
		return FAULT(f, "REGION_HOST: handle 0 is no handle");
	return check_region(f, "REGION_HOST", packet_bytes, sizeof(m), sizeof(m.strides[0]),
			    m.blocks_count, m.strides_count);
}

static bool check_memory_gpu(struct fault *f, const void *packet, size_t packet_bytes)
{
	struct ctl_memory_gpu m;

	if (!length_is(f, "MEMORY_GPU", packet_bytes, sizeof(m)))
		return false;
	memcpy(&m, packet, sizeof(m));
	if (m.memory_type != CTL_MEMORY_IPC_HANDLE && m.memory_type != CTL_MEMORY_POSIX_FD)
		return FAULT(f, "MEMORY_GPU: memory_type %u is neither 1 (IPC handle) nor 2 (fd)",
			     m.memory_type);
	if (m.reserved)
		return FAULT(f, "MEMORY_GPU: a reserved field is not zero");
	if (!m.allocation_bytes || m.allocation_bytes > INT64_MAX)
		return FAULT(f, "MEMORY_GPU: an allocation of %llu bytes cannot be",
			     (unsigned long long)m.allocation_bytes);
	if (m.memory_type == CTL_MEMORY_POSIX_FD && !all_zero(m.ipc_handle, sizeof(m.ipc_handle)))
		return FAULT(f, "MEMORY_GPU: ipc_handle is set although memory_type is 2 (fd)");
	return true;
}

static bool check_region_gpu(struct fault *f, const void *packet, size_t packet_bytes)
{
	struct ctl_region_gpu m;

	if (packet_bytes < sizeof(m))
		return length_is(f, "REGION_GPU", packet_bytes, sizeof(m));
	memcpy(&m, packet, sizeof(m));
	if (!m.ns || (!m.strides_count && !m.memory))
		return FAULT(f, "REGION_GPU: handle 0 is no handle");
	if (m.strides_count && (m.memory || m.offset))
		return FAULT(f, "REGION_GPU: memory and offset are of the packed form only");
	if (!check_region(f, "REGION_GPU", packet_bytes, sizeof(m), sizeof(m.strides[0]),
			  m.blocks_count, m.strides_count))
		return false;
	for (uint32_t i = 0; i < m.strides_count; i++) {
		struct skvc_abi_gpu_stride s;

		memcpy(&s, (const uint8_t *)packet + sizeof(m) + i * sizeof(s), sizeof(s));
		if (!s.memory)
			return FAULT(f, "REGION_GPU: stride %u: handle 0 is no handle", i);
		if (s.reserved)
			return FAULT(f, "REGION_GPU: stride %u: a reserved field is not zero", i);
	}
	return true;
}

static bool check_ns_prefill(struct fault *f, const void *packet, size_t packet_bytes)
{
	struct ctl_ns_prefill m;

	if (!length_is(f, "NS_PREFILL", packet_bytes, sizeof(m)))
		return false;
	memcpy(&m, packet, sizeof(m));
	if (!m.ns)
		return FAULT(f, "NS_PREFILL: handle 0 is no handle");
	if (m.reserved)
		return FAULT(f, "NS_PREFILL: a reserved field is not zero");
	return true;
}

int ctl_msg_check_request(const void *packet, size_t packet_bytes, uint16_t *ret_reason,
			  char *ret_text)
{
	uint16_t reason = SKVC_ABI_REASON_BAD_MESSAGE;
	struct fault f = { .text = ret_text, .reason = &reason };
	struct ctl_header h;
	bool good = false;

	if (packet_bytes < sizeof(h) || packet_bytes > CTL_MSG_BYTES_MAX) {
		(void)FAULT(&f, "a packet of %zu bytes is no message", packet_bytes);
		goto out;
	}
	memcpy(&h, packet, sizeof(h));
	if (h.magic != CTL_MAGIC) {
		(void)FAULT(&f, "magic 0x%08x is not that of this protocol", h.magic);
		goto out;
	}
	if (h.bytes != packet_bytes || h.reserved) {
		(void)FAULT(&f, "header says %u bytes (packet: %zu), reserved %u (must be 0)",
			    h.bytes, packet_bytes, h.reserved);
		goto out;
	}

	switch (h.type) {
	case CTL_HELLO:
		good = check_hello(&f, packet, packet_bytes);
		break;
	case CTL_NS_OPEN:
		good = check_ns_open(&f, packet, packet_bytes);
		break;
	case CTL_ARENA_NEW:
		good = check_arena_new(&f, packet, packet_bytes);
		break;
	case CTL_ARENA_FREE:
		good = check_free(&f, "ARENA_FREE", packet, packet_bytes);
		break;
	case CTL_REGION_HOST:
		good = check_region_host(&f, packet, packet_bytes);
		break;
	case CTL_MEMORY_GPU:
		good = check_memory_gpu(&f, packet, packet_bytes);
		break;
	case CTL_REGION_GPU:
		good = check_region_gpu(&f, packet, packet_bytes);
		break;
	case CTL_EVENT_GPU:
		good = length_is(&f, "EVENT_GPU", packet_bytes, sizeof(struct ctl_event_gpu));
		break;
	case CTL_REGION_FREE:
		good = check_free(&f, "REGION_FREE", packet, packet_bytes);
		break;
	case CTL_NS_PREFILL:
		good = check_ns_prefill(&f, packet, packet_bytes);
		break;
	case CTL_BYE:
		good = length_is(&f, "BYE", packet_bytes, sizeof(struct ctl_header));
		break;
	default:
		(void)FAULT(&f, "message type %u is no request", h.type);
	}
out:
	if (good)
		return 0;
	*ret_reason = reason;
	return -EPROTO;
}

/* ---- answers ---- */

static bool answer_handle_is_good(const void *packet)
{
	uint32_t handle, reserved;

	/* NS, ARENA and REGION begin alike: header, handle, reserved. */
	_Static_assert(offsetof(struct ctl_ns, ns) == offsetof(struct ctl_region, handle), "alike");
	_Static_assert(offsetof(struct ctl_arena, arena) == offsetof(struct ctl_region, handle),
		       "alike");
	memcpy(&handle, (const uint8_t *)packet + offsetof(struct ctl_region, handle),
	       sizeof(handle));
	memcpy(&reserved, (const uint8_t *)packet + offsetof(struct ctl_region, reserved),
	       sizeof(reserved));
	return handle && !reserved;
}

static bool error_is_good(const void *packet)
{
	struct ctl_error m;

	memcpy(&m, packet, sizeof(m));
	return m.res < 0 && m.res > -4096 && !m.reserved[0] && !m.reserved[1] && !m.reserved[2] &&
	       memchr(m.text, '\0', sizeof(m.text));
}

int ctl_msg_check_answer(const void *packet, size_t packet_bytes, uint16_t expected, uint32_t seq)
{
	struct ctl_header h;
	size_t want;

	if (packet_bytes < sizeof(h))
		return -EPROTO;
	memcpy(&h, packet, sizeof(h));
	if (h.magic != CTL_MAGIC || h.bytes != packet_bytes || h.reserved || h.seq != seq)
		return -EPROTO;
	if (h.type != expected && h.type != CTL_ERROR)
		return -EPROTO;

	switch (h.type) {
	case CTL_WELCOME:
		want = sizeof(struct ctl_welcome);
		break;
	case CTL_NS:
		want = sizeof(struct ctl_ns);
		break;
	case CTL_ARENA:
		want = sizeof(struct ctl_arena);
		break;
	case CTL_REGION:
		want = sizeof(struct ctl_region);
		break;
	case CTL_OK:
		want = sizeof(struct ctl_ok);
		break;
	case CTL_ERROR:
		want = sizeof(struct ctl_error);
		break;
	default:
		return -EPROTO;
	}
	if (packet_bytes != want)
		return -EPROTO;
	if (h.type == CTL_ERROR)
		return error_is_good(packet) ? 0 : -EPROTO;
	if (h.type == CTL_NS || h.type == CTL_ARENA || h.type == CTL_REGION)
		return answer_handle_is_good(packet) ? 0 : -EPROTO;
	return 0;
}
