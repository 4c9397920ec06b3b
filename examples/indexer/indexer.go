package main

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "indexer/gen/conversations/v1"
)

const pageSize = 100

// indexer keeps an index in step. What a message tells, and the token behind it, are one transaction of the index: a
// kill at any time leaves a token that belongs to the rows beside it.
type indexer struct {
	reading  pb.ConversationsServiceClient
	watching pb.ConversationsServiceClient // on a connection of its own
	index    *index
}

// run follows all conversations behind the token of the index, until ctx ends or a call or a statement fails.
func (x *indexer) run(ctx context.Context) error {
	token, err := x.index.resumeToken(ctx)
	if err != nil {
		return err
	}
	begins := token == ""
	for event, err := range follow(ctx, x.open, followOptions{resumeToken: token}) {
		if err != nil {
			return err
		}
		if event.reset {
			begins = true // what the index has stays there until it has been replaced
			continue
		}
		err := x.index.update(ctx, func(rows *rows) error { return x.apply(ctx, rows, event.message, begins) })
		if err != nil {
			return err
		}
		begins = false
	}
	return nil
}

func (x *indexer) open(ctx context.Context, token string) (stream[*pb.WatchConversationsResponse], error) {
	return x.watching.WatchConversations(ctx, &pb.WatchConversationsRequest{ResumeToken: token, IncludeItems: true})
}

// apply writes what a message tells. The first message of a watch that begins says from when on changes are told, so
// what there was is listed behind it. A change that both contain is written twice, with the same result.
func (x *indexer) apply(ctx context.Context, rows *rows, message *pb.WatchConversationsResponse, begins bool) error {
	if begins {
		if err := x.list(ctx, rows); err != nil {
			return err
		}
	}
	for _, change := range message.GetChanges() {
		if err := x.applyConversation(ctx, rows, change); err != nil {
			return err
		}
	}
	return rows.keepToken(message.GetResumeToken())
}

// list replaces all rows by what there is.
func (x *indexer) list(ctx context.Context, rows *rows) error {
	if err := rows.clear(); err != nil {
		return err
	}
	request := &pb.ListConversationsRequest{PageSize: pageSize}
	for {
		page, err := x.reading.ListConversations(ctx, request)
		if err != nil {
			return err
		}
		for _, conversation := range page.GetConversations() {
			if err := x.listItems(ctx, rows, conversation.GetId()); err != nil {
				return err
			}
			if err := rows.putConversation(conversation); err != nil {
				return err
			}
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return nil
		}
	}
}

// listItems writes the items of a conversation. If it has gone meanwhile it has none, and its removal will be told.
func (x *indexer) listItems(ctx context.Context, rows *rows, id string) error {
	request := &pb.ListItemsRequest{ConversationId: id, PageSize: pageSize, Order: pb.Order_ORDER_ASCENDING}
	for {
		page, err := x.reading.ListItems(ctx, request)
		if status.Code(err) == codes.NotFound {
			return rows.removeConversation(id)
		}
		if err != nil {
			return err
		}
		for _, item := range page.GetItems() {
			if err := rows.putItem(id, item); err != nil {
				return err
			}
		}
		if !page.GetHasMore() {
			return nil
		}
		request.Cursor = &pb.ListItemsRequest_PageToken{PageToken: page.GetNextPageToken()}
	}
}

func (x *indexer) applyConversation(ctx context.Context, rows *rows, change *pb.ConversationChange) error {
	if id := change.GetRemovedId(); id != "" {
		return rows.removeConversation(id)
	}
	conversation := change.GetConversation()
	if conversation == nil {
		return nil // a kind of change that this program does not know
	}
	known, err := rows.hasConversation(conversation.GetId())
	if err != nil {
		return err
	}
	// One that the caller may read only since now has items that were never told.
	if !known && !tellsAll(change) {
		if err := x.listItems(ctx, rows, conversation.GetId()); err != nil {
			return err
		}
	}
	for _, item := range change.GetItems() {
		if err := x.applyItem(ctx, rows, conversation.GetId(), item); err != nil {
			return err
		}
	}
	return rows.putConversation(conversation)
}

// tellsAll returns whether the items of a change begin with the first of the conversation, if it has had any.
func tellsAll(change *pb.ConversationChange) bool {
	if len(change.GetItems()) == 0 {
		return change.GetConversation().GetLastSequence() == 0
	}
	first := change.GetItems()[0]
	large, deleted := first.GetLargeItem().GetSequence(), first.GetDeletedItem().GetSequence()
	return max(first.GetItem().GetSequence(), large, deleted) == 1
}

func (x *indexer) applyItem(ctx context.Context, rows *rows, id string, change *pb.ItemChange) error {
	switch change := change.GetChange().(type) {
	case *pb.ItemChange_Item:
		return rows.putItem(id, change.Item)
	case *pb.ItemChange_LargeItem:
		request := &pb.GetItemRequest{ConversationId: id, ItemId: change.LargeItem.GetItemId()}
		item, err := x.reading.GetItem(ctx, request)
		if status.Code(err) == codes.NotFound {
			return nil // its deletion will be told
		}
		if err != nil {
			return err
		}
		return rows.putItem(id, item)
	case *pb.ItemChange_DeletedItem:
		return rows.removeItem(id, change.DeletedItem.GetSequence())
	}
	return nil
}
