/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_config.c - any bytes as skvcd.conf: refused with one printable line that names the file, or taken,
 * and then every number lies inside the range that the table gives it.
 */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "daemon/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_fields(const struct config *c)
{
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k)) {
		const uint8_t *p = (const uint8_t *)c + k->off;
		int64_t v;

		if (k->type == CONFIG_TEXT) {
			assert(memchr(p, '\0', k->field_bytes));
			continue;
		}
		v = k->field_bytes == sizeof(uint32_t) ? *(const int32_t *)p
						       : (int64_t) * (const uint64_t *)p;
		assert((v >= k->min && v <= k->max) || (!v && k->flags & CONFIG_OR_ZERO));
	}
	assert(c->tenants_count <= CONFIG_TENANTS_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char err[300];
	struct config c;
	int r;

	memset(err, 0, sizeof(err));
	r = config_load_bytes("FILE", (const char *)data, size, &c, err, sizeof(err) - 1);
	if (r < 0) {
		assert(!strncmp(err, "FILE", 4));
		for (const char *p = err; *p; p++)
			assert((unsigned char)*p >= ' ' && *p != 0x7f);
		return 0;
	}
	check_fields(&c);
	err[0] = '\0';
	if (config_check(&c, err, sizeof(err) - 1) < 0)
		assert(err[0] == '[');
	return 0;
}
