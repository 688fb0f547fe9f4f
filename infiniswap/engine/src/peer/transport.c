/* The transports that there are, and the loop's questions to all of them. */
#include "device.h"
#include "peer_tcp.h"
#include "rdma.h"
#include "transport.h"

static const struct transport *const transports[TRANSPORTS] = {
    [TRANSPORT_TCP] = &transport_tcp,
    [TRANSPORT_RDMA] = &transport_rdma,
};

void transports_event(struct device *d, uint32_t number)
{
    transports[number >> 16]->port_event(d, number & 0xffff);
}

void transports_poll(struct device *d)
{
    for (uint32_t i = 0; i < TRANSPORTS; i++)
        if (transports[i]->poll)
            transports[i]->poll(d);
}

bool transports_await(struct device *d)
{
    for (uint32_t i = 0; i < TRANSPORTS; i++)
        if (transports[i]->awaits && transports[i]->awaits(d))
            return true;
    return false;
}

bool transports_busy(const struct device *d)
{
    for (uint32_t i = 0; i < TRANSPORTS; i++)
        if (transports[i]->busy && transports[i]->busy(d))
            return true;
    return false;
}
