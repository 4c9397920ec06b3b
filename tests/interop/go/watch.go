package main

import (
	"context"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "interop/gen/conversations/v1"
)

// watchItems follows a conversation until it has been deleted, or until ctx ends. The client has a connection of its
// own, and the request says where to begin without a token.
func watchItems(
	ctx context.Context, client pb.ConversationsServiceClient, request *pb.WatchItemsRequest, options followOptions,
) iter.Seq2[event[*pb.WatchItemsResponse], error] {
	open := func(ctx context.Context, token string) (stream[*pb.WatchItemsResponse], error) {
		if token == "" {
			return client.WatchItems(ctx, request)
		}
		resumed := proto.CloneOf(request)
		resumed.Start = &pb.WatchItemsRequest_ResumeToken{ResumeToken: token}
		return client.WatchItems(ctx, resumed)
	}
	return func(yield func(event[*pb.WatchItemsResponse], error) bool) {
		for event, err := range follow(ctx, open, options) {
			if !yield(event, err) || slices.ContainsFunc(event.message.GetChanges(), isDeletion) {
				return
			}
		}
	}
}

func isDeletion(change *pb.ItemChange) bool {
	return change.GetConversationDeleted() != nil
}
