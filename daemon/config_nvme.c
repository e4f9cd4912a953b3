/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_nvme.c - [nvme] path as a list: paths with commas between them, each with a size of its own behind a blank or
 * with the common one.  Pure.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/config.h"

/* Its size, when the last word is one that has a unit: then that is cut off. */
static uint64_t cut_size(char *path, uint64_t bytes)
{
	char *blank = strrchr(path, ' ');
	uint64_t own;

	if (!blank || strchr(blank, '/') || config_parse_size(blank + 1, &own) < 0)
		return bytes;
	while (blank > path && blank[-1] == ' ')
		blank--;
	*blank = '\0';
	return own;
}

static int take(struct config_nvme_device *d, const char *at, size_t count, uint64_t bytes)
{
	while (count && *at == ' ') {
		at++;
		count--;
	}
	while (count && at[count - 1] == ' ')
		count--;
	if (!count || count >= sizeof(d->path))
		return -EINVAL;
	memset(d->path, 0, sizeof(d->path));
	memcpy(d->path, at, count);
	d->bytes = cut_size(d->path, bytes);
	return d->path[0] ? 0 : -EINVAL;
}

int config_nvme_devices(const struct config *c,
			struct config_nvme_device ret[CONFIG_NVME_DEVICES_MAX])
{
	const char *at = c->nvme_path;
	int n = 0;

	if (!*at)
		return 0;
	for (;;) {
		size_t count = strcspn(at, ",");

		if (n == (int)CONFIG_NVME_DEVICES_MAX ||
		    take(&ret[n], at, count, c->nvme_bytes) < 0)
			return -EINVAL;
		for (int i = 0; i < n; i++)
			if (!strcmp(ret[i].path, ret[n].path))
				return -EINVAL;
		n++;
		if (!at[count])
			return n;
		at += count + 1;
	}
}

uint64_t config_nvme_bytes(const struct config *c)
{
	struct config_nvme_device device[CONFIG_NVME_DEVICES_MAX];
	uint64_t bytes = 0;

	for (int n = config_nvme_devices(c, device); n > 0; n--)
		bytes += device[n - 1].bytes;
	return bytes;
}
