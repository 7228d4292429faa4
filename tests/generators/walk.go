// A program that uses the client that oapi-codegen generates from the contract.
package main

import (
	"context"
	"log"
	"os"

	"example.org/walk/hyperfleet"
)

func must(ok bool, what string, err ...error) {
	if !ok {
		log.Fatal(what, ": ", err)
	}
}

func main() {
	ctx := context.Background()
	client, err := hyperfleet.NewClientWithResponses(os.Args[1])
	must(err == nil, "client")

	labels := hyperfleet.Labels{"made-by": "go"}
	created, err := client.PostClusterWithResponse(ctx, nil, hyperfleet.ClusterCreateRequest{
		Name: "by-go", Spec: hyperfleet.ClusterSpec{"nodes": 3}, Labels: &labels,
	})
	must(err == nil && created.JSON201 != nil, "create", err)
	id := created.JSON201.Id

	search, size := "labels.made-by='go'", 10
	listed, err := client.GetClustersWithResponse(ctx, &hyperfleet.GetClustersParams{Search: &search, PageSize: &size})
	must(err == nil && listed.JSON200 != nil && listed.JSON200.Total == 1, "list", err)
	must(listed.JSON200.Items[0].Id == id, "item")

	reason := "Resolves"
	reported, err := client.PutClusterStatusesWithResponse(ctx, id, nil, hyperfleet.AdapterStatusCreateRequest{
		Adapter: "dns", ObservedGeneration: 1,
		Conditions: []hyperfleet.ConditionRequest{{Type: "Available", Status: "True", Reason: &reason}},
	})
	must(err == nil && reported.JSON201 != nil && *reported.JSON201.Conditions[0].Reason == reason, "report", err)

	got, err := client.GetClusterByIdWithResponse(ctx, id, nil)
	must(err == nil && got.JSON200 != nil && got.JSON200.Status.Phase == "Ready", "get", err)

	spec := hyperfleet.ClusterSpec{"nodes": 5}
	patched, err := client.PatchClusterByIdWithResponse(ctx, id, nil, hyperfleet.ClusterPatchRequest{Spec: &spec})
	must(err == nil && patched.JSON200 != nil && patched.JSON200.Generation == 2, "patch", err)

	pool, err := client.CreateNodePoolWithResponse(ctx, id, nil, hyperfleet.NodePoolCreateRequest{
		Name: "workers", Spec: hyperfleet.NodePoolSpec{"replicas": 2},
	})
	must(err == nil && pool.JSON201 != nil && pool.JSON201.OwnerReferences.Id == id, "node pool", err)
	flat, err := client.GetNodePoolWithResponse(ctx, pool.JSON201.Id, nil)
	must(err == nil && flat.JSON200 != nil && flat.JSON200.Name == "workers", "flat route", err)

	wrong, err := client.PostClusterWithResponse(ctx, nil, hyperfleet.ClusterCreateRequest{Name: "by-go", Spec: spec})
	must(err == nil && wrong.ApplicationproblemJSON409 != nil, "conflict", err)
	must((*wrong.ApplicationproblemJSON409.Errors)[0].Field == "name", "fault")

	deleted, err := client.DeleteClusterByIdWithResponse(ctx, id, nil)
	must(err == nil && deleted.JSON202 != nil && deleted.JSON202.DeletedTime != nil, "delete", err)
}
