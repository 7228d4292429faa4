// A program that uses the types that openapi-typescript generates from the contract.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

const client = createClient<paths>({ baseUrl: process.argv[2] });
type Cluster = components["schemas"]["Cluster"];

function must<T>(value: T | undefined | null | false, what: string, error?: unknown): T {
  if (!value) throw new Error(`${what}: ${JSON.stringify(error)}`);
  return value;
}

async function main() {
  const created = await client.POST("/api/hyperfleet/v1/clusters", {
    body: { name: "by-typescript", spec: { nodes: 3 }, labels: { "made-by": "typescript" } },
  });
  const cluster: Cluster = must(created.data, "create", created.error);
  const path = { cluster_id: cluster.id };
  const listed = await client.GET("/api/hyperfleet/v1/clusters", {
    params: { query: { search: "labels.made-by='typescript'", pageSize: 10 } },
  });
  must(listed.data?.total === 1 && listed.data.items[0].id === cluster.id, "list", listed.error);
  const reported = await client.PUT("/api/hyperfleet/v1/clusters/{cluster_id}/statuses", {
    params: { path },
    body: {
      adapter: "dns",
      observed_generation: 1,
      conditions: [{ type: "Available", status: "True", reason: null }],
    },
  });
  must(reported.data?.conditions[0].status === "True", "report", reported.error);
  const got = await client.GET("/api/hyperfleet/v1/clusters/{cluster_id}", { params: { path } });
  must(got.data?.status.phase === "Ready", "get", got.error);
  const patched = await client.PATCH("/api/hyperfleet/v1/clusters/{cluster_id}", {
    params: { path },
    body: { spec: { nodes: 5 } },
  });
  must(patched.data?.generation === 2, "patch", patched.error);
  const pool = await client.POST("/api/hyperfleet/v1/clusters/{cluster_id}/nodepools", {
    params: { path },
    body: { name: "workers", spec: { replicas: 2 } },
  });
  const flat = await client.GET("/api/hyperfleet/v1/nodepools/{nodepool_id}", {
    params: { path: { nodepool_id: must(pool.data, "node pool", pool.error).id } },
  });
  must(flat.data?.name === "workers", "flat route", flat.error);
  const taken = await client.POST("/api/hyperfleet/v1/clusters", {
    body: { name: "by-typescript", spec: {} },
  });
  must(taken.error?.status === 409, "conflict");
  const deleted = await client.DELETE("/api/hyperfleet/v1/clusters/{cluster_id}", { params: { path } });
  must(deleted.data?.deleted_time, "delete", deleted.error);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
